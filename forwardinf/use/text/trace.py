"""Which training text taught the model this? Questions with answers, and the documents that support them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from torch import nn

from forwardinf.core.errors import DataError, SettingError, choose
from forwardinf.core.progress import ARITHMETIC, Setting, Stages, stages
from forwardinf.core.progress import progress as shown
from forwardinf.core.settings import Perturbation
from forwardinf.data.examples import Id
from forwardinf.job.options import Options, as_perturbation
from forwardinf.models.borrowed import borrowed
from forwardinf.score.scores import Scores
from forwardinf.use.inputs import candidate_positions
from forwardinf.use.jointly import Turn, alone
from forwardinf.use.sketch import HOW, bytes_of, check_damping, width_of
from forwardinf.use.text.asked_tasks import READINGS
from forwardinf.use.text.free import free_rankings
from forwardinf.use.text.fuse import as_fusion, reciprocal
from forwardinf.use.text.lexical import available
from forwardinf.use.text.marked import marked_words
from forwardinf.use.text.questions import FIT, Asking
from forwardinf.use.text.sketching import CURVATURES, by_sketches
from forwardinf.use.traces import Traced, expect_attribution, ranked

Array = np.ndarray[Any, np.dtype[np.float64]]

STAGE = 100  # candidates that each first stage names
CHANGES = 40  # forwards that finding a question's push, and its top documents under it, count for in the progress
STAGES = ("two-stage", "bm25", "neighbours")
TABLE = ["question", "rank", "train", "score", "share", "bm25", "fused"]


def trace(
    model: nn.Module,
    train: Any,
    questions: Sequence[Any],
    *,
    tokenizer: Any = None,
    answers: Sequence[str] | None = None,
    span: Any = None,
    text: str | tuple[str, str] = "text",
    documents: str | int | None = None,
    candidates: Any = None,
    contrast: Sequence[Any] | None = None,
    fuse: Any = None,
    how: str | None = None,
    reading: str | None = None,
    curvature: str | None = None,
    jointly: bool = False,
    perturbation: Perturbation | str | Mapping[str, Any] | None = None,
    damping: float | None = None,
    side: int | None = None,
    memory: int | None = None,
    per_token: bool = False,
    checkpoints: Sequence[Any] | None = None,
    parameters: str | Sequence[str] | None = None,
    ids: str | Sequence[Id] | None = None,
    question_ids: Sequence[Id] | None = None,
    k: int = 20,
    spans: int = 3,
    baselines: bool = True,
    max_length: int | None = None,
    new_tokens: int = 24,
    batch_size: int | Literal["auto"] = "auto",
    device: str = "auto",
    cache_dir: str | Path | None = None,
    progress: Setting = "auto",
    seed: int = 0,
) -> Traced:
    """Rank training documents by how much they support each answer; positive = proponent.

    By default every document's gradient is sketched once (kept in ``cache_dir``), through the model's curvature and at length
    one, and the answer's gradient is compared with all of them, whitened by how the documents answer one another. What is
    known has almost no loss left, and its loss no gradient: gradients are of every token's margin log p/(1 − p), in which what
    was learnt well counts as much as what was not. A ``perturbation`` is read by forward passes instead, as
    :func:`attribute` does.

    Cost: the curvature of 2,000 documents and about 3 F once for the sketches, 1 F for the hidden-state baseline, then one
    gradient for each question and a solve with a few thousand unknowns, whose factor is kept with the sketches. Memory: 512 MiB
    of sketches, or what the narrowest take (16 numbers a side: 27 kB for each document of a four-layer decoder), and up to five
    times that while they are compared; ``memory`` is a cap on all of it. A call that was killed goes on where it was. With
    ``candidates`` the sketches of all documents serve, where they are kept; else those of the candidates and of 2,000 others.

    Args:
        model: A Hugging Face decoder or encoder-decoder, adapters included (PEFT), trained; put in eval mode and given back.
        train: Texts; or rows, a table or a dataset with a column of text, or of ``input_ids`` (``labels``).
        questions: Prompts; or rows with ``input_ids`` and ``labels`` (−100: not asked).
        tokenizer: The model's.
        answers: What to explain, one for each question; None: the model's own greedy continuation.
        span: Part of each answer, as text or (first, last + 1) characters: only its tokens are asked about. A list: one for
            each question.
        text: The column of text; a pair (input, output) for an encoder-decoder or a prompt that is not counted.
        documents: What separates documents in packed rows; see :class:`CausalLM`. Each is then a training example.
        candidates: None: all documents. ``"two-stage"``: the 100 best by BM25 and the 100 nearest hidden states of each
            question; ``"bm25"`` or ``"neighbours"``: one of the two. Or a list of positions for each question, or
            ``{question id: ids}``.
        contrast: Wrong answers, a text or a list for each question: asked is the answer's reading less their mean.
        fuse: ``"bm25"``: rank by reciprocal ranks of the score and of BM25 (answer filled in); a number: BM25's weight.
        how: ``"unit-whitened"`` (default), ``"whitened"``, ``"cosine"`` or ``"dot"``: how gradients are compared, once they are
            taken through ``curvature``.
        reading: What they are gradients of, token by token: ``"margin"`` (default), ``"loss"``, or ``"root"`` between the two.
            With a perturbation: what makes it, and what is read under it.
        curvature: ``"kfac"`` (default): gradients are taken through (F + λI)^−½ of the model's own curvature, by K-FAC on 2,000
            documents, so that their products are influences under it and their sketches lose little of what counts;
            ``"none"``: as they are.
        jointly: Name the documents that count *together*: each one next to those that are named before it, as if these were
            left out (:mod:`forwardinf.use.jointly`). Look-alikes stand in for one another, so alone each counts for little. The
            table's ``score`` is then what a document takes with it when its turn comes; ``scores`` stay each one's own.
        perturbation: Instead of ``how``: any :class:`Perturbation` (``rise=``, ``length=``, a preset's name).
        damping: Of the whitening: λN as a multiple of the mean ‖gᵢ‖²; default 5.
        side: Numbers that each side of a weight is projected to; None: 64, 32 or 16, the widest at which all documents' sketches
            take 512 MiB (16 where none does). A document's sketch takes 4 · side² bytes for each weight.
        memory: Bytes that the sketches and comparing them may take, beside the model: the widest side that keeps to it (down
            to 4), or an error that names the least. ``8·N·M + 24·min(N, M)²`` for N documents and M numbers each.
        per_token: Divide scores by the document's counted tokens.
        checkpoints: Earlier states of the model: scores are the mean over it and them.
        parameters: Globs over the parameters whose gradients count; default those with ``requires_grad`` (the adapter's).
        ids: Training ids: a column or a list.
        question_ids: Likewise; default the position.
        k: Documents in the table for each question.
        spans: In how many of them tokens are read under the push; 0: none.
        baselines: Also rank by BM25 and by hidden states, on the same documents.
        max_length: Cut training texts to so many tokens.
        new_tokens: Longest continuation.
        batch_size: Documents at a time; ``"auto"``: 16.
        device: ``"auto"``: where the model is.
        cache_dir: Where sketches are kept; default ``$FORWARDINF_CACHE``, else ``~/.cache/forwardinf``.
        progress: Show progress on stderr.
        seed: Of the sketches' projections.

    Returns:
        :class:`Traced`: ``table`` (question, rank, train, score, share, bm25, fused), ``spans``, ``baselines``, ``scores``.

    Raises:
        Error: With where / expected / got / do; a question without a gradient is a :class:`QueryError`.

    Example:
        >>> found = trace(model, texts, ["The capital of France is"], tokenizer=tokenizer, answers=["Paris"])  # doctest: +SKIP
        >>> found.table.head(3)  # doctest: +SKIP
    """
    began = time.perf_counter()
    if how is not None and perturbation is not None:
        raise SettingError("trace()", expected="one of how and perturbation", got="both", do="Keep one.")
    if how is not None and how not in HOW:
        raise choose("trace(how=)", how, HOW)
    if jointly:
        alone("trace(jointly=)", how, {"perturbation": perturbation, "fuse": fuse, "checkpoints": checkpoints,
                                       "per_token": per_token or None})  # fmt: skip
    if reading is not None and reading not in READINGS:
        raise choose("trace(reading=)", reading, tuple(READINGS))
    if perturbation is not None and (curvature, damping) != (None, None):
        raise SettingError("trace()", expected="no curvature and no damping beside a perturbation", got="both",
                           do="Perturbation(direction, damping=) has its own.")  # fmt: skip
    check_damping("trace(damping=)", damping)
    curvature = curvature or CURVATURES[0]
    if curvature not in CURVATURES:
        raise choose("trace(curvature=)", curvature, CURVATURES)
    reading = reading or "margin"
    if k < 1 or spans < 0:
        raise SettingError("trace(k=, spans=)", expected="k ≥ 1 and spans ≥ 0", got=f"{k}, {spans}")
    fusion = as_fusion(fuse)
    options = Options(batch_size=batch_size, device=device, cache_dir=cache_dir, progress=progress, seed=seed)
    globs = tuple([parameters] if isinstance(parameters, str) else parameters) if parameters is not None else None
    with stages("trace", progress) as whole, borrowed(model) as model:
        job = Asking(model, options, train, tokenizer, text, documents, max_length, ids, globs, reading, curvature,
                     side, memory)  # fmt: skip
        with shown("answers", 1, progress):
            job.ask(questions, answers, span, contrast, new_tokens, question_ids)
        stage = candidates if isinstance(candidates, str) else None
        if stage is not None and stage not in STAGES:
            raise choose("trace(candidates=)", stage, STAGES)
        needs = {
            "bm25": fusion is not None or stage in ("two-stage", "bm25"),
            "neighbours": stage in ("two-stage", "neighbours"),
        }
        states = 1 + len(checkpoints or ())
        _expect(whole, job, needs, baselines, perturbation, states, spans, candidates is None)
        free = free_rankings(job, needs, baselines)
        chosen = _chosen(stage, candidates, free, job)
        turns: list[Turn] = []
        if perturbation is None:
            values, own, turns = by_sketches(job, how or HOW[0], damping, chosen, checkpoints, k if jointly else 0)
        else:
            values, own = job.read(as_perturbation(perturbation), chosen, checkpoints)
        if per_token:
            values = values / job.counts()[None]
            own = own / np.asarray([sum(label != -100 for label in question.row["labels"]) for question in job.asked])
        scores = Scores.from_array(
            values, ids=job.train.examples.ids, query_ids=job.names, rise=own,
            unit="nats" if reading == "loss" and (perturbation is not None or (how == "dot" and curvature == "none")) else None,
            kind="linear" if perturbation is None else as_perturbation(perturbation).kind,
        )  # fmt: skip
        table = _table(scores, free, fusion, k, turns)
        moved = marked_words(job, table, spans, perturbation) if spans else None
        return Traced(
            use="trace", table=table, baselines=_baselines(scores, free, k), scores=scores, spans=moved,
            how=f"{_told(how, curvature) if perturbation is None else as_perturbation(perturbation).told()}, {reading}"
            + (", jointly" if jointly else ""), notes=job.notes,
            cost=job.cost(time.perf_counter() - began),
            shown=job.shown(table),
        )  # fmt: skip


def _expect(
    whole: Stages, job: Asking, needs: Mapping[str, bool], baselines: bool, perturbation: Any, states: int, spans: int,
    whole_set: bool,
) -> None:  # fmt: skip
    """Say what the call will do, for its progress."""
    size, rows = job.units, len(job.rows)
    read = size if whole_set else min(size, FIT + STAGE * rows)  # documents whose gradients are sketched
    if needs["bm25"] or (baselines and available()):
        whole.expect("BM25", size + len(job.asked), "texts")
    if needs["neighbours"] or baselines:
        whole.expect("hidden states", size)
    if perturbation is None:
        side = job.side(None if whole_set else [np.zeros(1)])
        width, fit = width_of(job.parameters, side), 0 if job.curvature == "none" else min(FIT, size)
        whole.say(documents=size, questions=len(job.asked), sketched=read, side=side, numbers_each=width,
                  backward_passes=states * (read + rows + fit), memory_bytes=bytes_of(read, width),
                  disk_bytes=4 * states * read * width)  # fmt: skip
    else:
        whole.say(documents=size, questions=len(job.asked))
    for _ in range(states):
        if perturbation is None:
            whole.expect("fitting", 4 * fit)
            whole.expect("gradients", 4 * read)
            whole.expect("questions", 4 * rows)
            whole.expect("comparing", read * width * min(read, width) + min(read, width) ** 3 / 3, ARITHMETIC)
        else:
            expect_attribution(whole, as_perturbation(perturbation), size, rows)
    whole.expect("changes of tokens", CHANGES * len(job.asked) if spans else 0)


def _told(how: str | None, curvature: str) -> str:
    return (how or HOW[0]) + (f" through {curvature}" if curvature != "none" else "")


def _chosen(stage: str | None, candidates: Any, free: Mapping[str, Array], job: Asking) -> list[Array] | None:
    """Return each question's candidate positions, or None for all."""
    if candidates is None:
        return None
    if stage is not None:
        kinds = {"two-stage": ("bm25", "hidden"), "bm25": ("bm25",), "neighbours": ("hidden",)}[stage]
        return [
            np.unique(np.concatenate([ranked(free[kind][q], STAGE) for kind in kinds])) for q in range(len(job.asked))
        ]
    lists = candidate_positions(candidates, job.names, job.train.examples.ids, "question")
    if len(lists) != len(job.asked) or not all(lists):
        raise DataError(
            "candidates", expected=f"a list of at least one for each of {len(job.asked)} questions", got=str(len(lists))
        )
    flat = [value for entry in lists for value in entry]
    if min(flat) < 0 or max(flat) >= job.units:
        raise DataError("candidates", expected=f"positions from 0 to {job.units - 1}", got=str(max(flat)))
    return [np.unique(np.asarray(entry)) for entry in lists]


def _table(
    scores: Scores, free: Mapping[str, Array], fusion: tuple[float, float] | None, k: int, turns: list[Turn]
) -> pd.DataFrame:
    """Return the strongest documents of each question; with ``turns`` those that count together, in their order."""
    records, share = [], scores.share
    for q, name in enumerate(scores.query_ids):
        own = scores.values[q].astype(np.float64)
        lexical = free["bm25"][q] if "bm25" in free else np.full(own.shape, np.nan)
        fused = np.full(own.shape, np.nan)
        if fusion is not None:
            fused = reciprocal([own, np.where(np.isfinite(own), lexical, np.nan)], [1.0, fusion[0]], fusion[1])
        best = ranked(own if fusion is None else fused, k)
        best, shown = turns[q] if turns else (best, own[best])
        records += [
            {"question": name, "rank": rank, "train": scores.ids[place], "score": float(score), "share": float(share[q, place]),
             "bm25": lexical[place], "fused": fused[place]}
            for rank, (place, score) in enumerate(zip(best, shown, strict=True), start=1)
        ]  # fmt: skip
    return pd.DataFrame(records, columns=TABLE)


def _baselines(scores: Scores, free: Mapping[str, Array], k: int) -> pd.DataFrame:
    """Return what each free ranking would have named, among the documents that were scored."""
    records = []
    for q, name in enumerate(scores.query_ids):
        read = np.isfinite(scores.values[q])
        for method, values in free.items():
            there = np.where(read, values[q], np.nan)
            records += [
                {"question": name, "method": method, "rank": rank, "train": scores.ids[place], "score": float(there[place])}
                for rank, place in enumerate(ranked(there, k), start=1)
            ]  # fmt: skip
    return pd.DataFrame(records, columns=["question", "method", "rank", "train", "score"])
