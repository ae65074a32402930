import json

import numpy as np
import pytest
import torch
from close import assert_close, assert_within
from PIL import Image
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

import forwardinf as fi
from forwardinf.truth import convex, verify_convex, verify_groups
from forwardinf.truth.mirror import Keep, mirror_losses
from forwardinf.truth.verify_data import pictures, split

SKLEARN = {"tol": 1e-12, "max_iter": 1000, "solver": "newton-cholesky"}


class LeastSquares:
    """Ridge regression, refitted by a solver each time: a learner whose influences have a closed form."""

    def __init__(self, train, tests, ridge=0.5):
        self.x, self.y = train
        self.tests, self.ridge = tests, ridge

    def fit(self, x, y):
        return np.linalg.solve(x.T @ x + self.ridge * np.eye(x.shape[1]), x.T @ y)

    @staticmethod
    def losses(data, theta):
        return 0.5 * (data[0] @ theta - data[1]) ** 2

    def base(self):
        theta = self.fit(self.x, self.y)
        return self.losses(self.tests, theta), self.losses((self.x, self.y), theta)

    def without(self, rows):
        fits = [self.fit(np.delete(self.x, row, 0), np.delete(self.y, row)) for row in rows]
        return np.stack([self.losses(self.tests, theta) for theta in fits], 1), np.zeros(len(rows))

    def with_tests(self):
        fits = [self.fit(np.vstack([self.x, x]), np.append(self.y, y)) for x, y in zip(*self.tests, strict=True)]
        return np.stack([self.losses((self.x, self.y), theta) for theta in fits]), np.zeros(len(fits))


def problem(n=30, tests=4, width=5):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(n + tests, width))
    y = x @ draw.normal(size=width) + draw.normal(size=n + tests)
    return (x[:n], y[:n]), (x[n:], y[n:])


def test_least_squares_has_the_influences_of_its_closed_form():
    train, tests = problem()
    rows = list(range(1, 30, 2))
    told = []
    removal, addition, facts = mirror_losses(
        lambda: LeastSquares(train, tests), rows, Keep(None, {}), "ridge", 4, told.append
    )
    inverse = np.linalg.inv(train[0].T @ train[0] + 0.5 * np.eye(5))
    theta = inverse @ train[0].T @ train[1]
    r_i, r_t = train[1] - train[0] @ theta, tests[1] - tests[0] @ theta
    h_ti, h_ii = tests[0] @ inverse @ train[0].T, np.einsum("id,de,ie->i", train[0], inverse, train[0])
    h_tt = np.einsum("id,de,ie->i", tests[0], inverse, tests[0])
    gone = 0.5 * (r_t[:, None] + h_ti * r_i / (1 - h_ii)) ** 2 - 0.5 * r_t[:, None] ** 2
    added = 0.5 * r_i**2 - 0.5 * (r_i - h_ti * r_t[:, None] / (1 + h_tt[:, None])) ** 2
    assert_close(removal, gone[:, rows], rtol=1e-10, why="the same sums in another order, float64")
    assert_close(addition, added[:, rows], rtol=1e-10, why="the same sums in another order, float64")
    assert sum(told) == facts["fits"] == len(rows) + 4


def test_both_influences_have_one_sign_and_a_copy_of_the_test_is_a_proponent():
    (x, y), (tx, ty) = problem(40)
    x[7], y[7] = tx[1], ty[1]
    x[8], y[8] = tx[1], ty[1] + 1e3 * np.sign(ty[1] - tx[1] @ np.linalg.lstsq(x, y, rcond=None)[0])  # far beyond it
    removal, addition, _ = mirror_losses(
        lambda: LeastSquares((x, y), (tx, ty)), list(range(40)), Keep(None, {}), "ridge", 40, lambda done: None
    )
    assert removal[1, 7] > 0
    assert addition[1, 7] > 0
    # Row 8 says of the same input something far off: the test's loss falls without it, and its loss rises with the test.
    assert removal[1, 8] < 0
    assert addition[1, 8] < 0
    strong = np.abs(addition) > 0.3 * np.abs(addition).max(1, keepdims=True)  # to first order both are h_ti r_i r_t
    assert (np.sign(removal)[strong] == np.sign(addition)[strong]).all()


@pytest.fixture(scope="module")
def logistic():
    """A logistic regression on digits, and the same data for scikit-learn."""
    found = pictures("digits")
    rows, others = split(len(found.labels), 120, 200, 3)
    train, tests = found.take(rows), found.take(others[:5])
    return train, tests, verify_convex.Converged(train, tests, 10, recompute=True, tolerance=1e-11)


def by_sklearn(images, labels, c):
    return LogisticRegression(C=c, **SKLEARN).fit(images.flatten(1).numpy(), labels.numpy())


def losses_of(model, images, labels):
    probs = model.predict_proba(images.flatten(1).numpy())
    return -np.log(probs[np.arange(len(labels)), labels.numpy()])


@pytest.mark.parametrize("recompute", [True, False])
def test_each_fit_is_the_one_scikit_learn_finds_from_nothing(logistic, recompute):
    train, tests, _ = logistic
    ours = verify_convex.Converged(train, tests, 10, recompute=recompute, tolerance=1e-11)
    why = "scikit-learn's own tolerance of 1e-12 leaves this much"
    model = by_sklearn(*train, 1 / 1.2)
    assert_within(ours.base()[0], losses_of(model, *tests), atol=1e-8, why=why)
    assert_within(ours.base()[1], losses_of(model, *train), atol=1e-8, why=why)
    without, gradient = ours.without([3, 77])
    assert (gradient <= 1e-11).all()
    for column, row in enumerate([3, 77]):
        kept = torch.arange(120) != row
        model = by_sklearn(train[0][kept], train[1][kept], 1 / (0.01 * (119 if recompute else 120)))
        assert_within(without[:, column], losses_of(model, *tests), atol=1e-8, why=why)
    added, _ = ours.with_tests()
    model = by_sklearn(torch.cat([train[0], tests[0][2:3]]), torch.cat([train[1], tests[1][2:3]]),
                       1 / (0.01 * (121 if recompute else 120)))  # fmt: skip
    assert_within(added[2], losses_of(model, *train), atol=1e-8, why=why)


def test_the_curvature_is_that_of_autograd(logistic):
    _, _, ours = logistic
    rows, weights = ours.rows, ours._weights(1)[:, 0]
    params = 0.1 * torch.randn(ours.optimum.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def objective(flat):
        theta = flat.view(len(rows.basis) - 1, -1).T
        losses = torch.nn.functional.cross_entropy(rows.features @ theta @ rows.basis.T, rows.labels, reduction="none")
        return (weights * losses).sum() + 0.6 * theta[:-1].square().sum()

    small = params.T.flatten()
    vector = torch.randn(len(small), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    want = torch.autograd.functional.hvp(objective, small, vector)[1]
    got = convex.hessian(rows, weights, 1.2, params) @ vector
    assert_close(got, want, rtol=1e-10, why="the same product in float64")
    dense = convex.hessian(rows, weights, 1.2, params)
    solve = convex.curvature(rows, weights, 1.2, params)
    right = torch.randn(params.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))[:, None]
    want = torch.linalg.solve(dense, right[:, 0].T.flatten()).view(params.shape[1], -1).T
    assert_close(
        solve(right)[:, 0],
        want,
        rtol=1 / 40,
        why="dense but for directions whose curvature from the data is a 40th of the penalty at most",
    )


def test_exact_leave_one_out_follows_the_inverse_hessian(logistic):
    train, tests, _ = logistic
    ours = verify_convex.Converged(train, tests, 10, recompute=False, tolerance=1e-11)
    removal = ours.without(list(range(120)))[0] - ours.base()[0][:, None]
    dense = convex.hessian(ours.rows, ours._weights(1)[:, 0], 1.2, ours.optimum)
    asked = convex.row_gradients(ours.rows, ours.optimum, ours.asked)
    own = convex.row_gradients(ours.rows, ours.optimum, ours.own)
    first = (asked @ torch.linalg.solve(dense, own.T)).numpy()
    for query in range(5):
        assert spearmanr(first[query], removal[query]).statistic > 0.98


def test_a_fit_that_does_not_converge_is_refused(logistic):
    _, _, ours = logistic
    with pytest.raises(fi.ModelError, match="1e-30"):
        convex.fit(
            ours.rows,
            ours._weights(1),
            torch.tensor([1.2], dtype=torch.float64),
            ours.optimum,
            ours.precondition,
            1e-30,
        )


def test_the_split_is_the_published_one():
    labels = np.arange(500)
    train, validation = train_test_split(labels, train_size=70, test_size=300, random_state=42)
    ours = split(500, 70, 300, 42)
    assert ours[0].tolist() == train.tolist()
    assert ours[1].tolist() == validation.tolist()
    with pytest.raises(fi.DataError, match="at most 500"):
        split(500, 300, 300, 42)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    return fi.verify("digits", parts=["convex"], quick=True, progress=False, output_dir=folder), folder


def test_on_digits_the_hypothesis_holds_where_fits_converge(quick):
    found, _ = quick
    rows = found.table.set_index("experiment")
    exact = rows.loc["C = 1/(0.01 n)"]
    assert (exact["tests"], exact["train"]) == (6, 240)
    assert exact["pearson"] > 0.98
    assert exact["spearman"] > 0.95
    assert exact["low"] <= exact["spearman"] <= exact["high"]
    assert exact["largest_gradient"] <= 1e-11
    library, same = rows.loc["scikit-learn's defaults"], rows.loc["C = 1/(0.01 n), those 60 images"]
    assert library["spearman"] < same["spearman"] - 0.02  # unconverged fits lose the small influences
    assert len(found.per_query) == 4 * 6
    mean = found.per_query.groupby("experiment")["spearman"].mean()
    assert_close(mean["C held fixed"], rows.loc["C held fixed", "spearman"], rtol=1e-12, why="the same mean")
    shuffled = np.random.default_rng(0).permuted(found.mirrors[0].addition, axis=1)
    assert (
        abs(np.mean([spearmanr(a, b).statistic for a, b in zip(shuffled, found.mirrors[0].removal, strict=True)]))
        < 0.15
    )


def test_what_is_kept_is_not_fitted_again_and_belongs_to_one_run(quick, monkeypatch):
    found, folder = quick
    gone = folder / "fits" / "convex" / "fixed" / "without-00050.json"
    before = gone.read_text()
    gone.unlink()
    made = []
    real = verify_convex.Converged
    monkeypatch.setattr(verify_convex, "Converged", lambda *a, **k: made.append(k) or real(*a, **k))
    again = fi.verify("digits", parts=["convex"], quick=True, progress=False, output_dir=folder)
    assert [each["recompute"] for each in made] == [False]  # only what was missing
    assert_close(np.array(json.loads(gone.read_text())["values"])[:-1], np.array(json.loads(before)["values"])[:-1],
                 rtol=1e-12, why="the same fits; the last row is their time")  # fmt: skip
    assert again.table.equals(found.table)
    with pytest.raises(fi.RunMismatch, match="seed"):
        fi.verify("digits", parts=["convex"], quick=True, seed=1, progress=False, output_dir=folder)


def test_files_and_picture(quick, tmp_path):
    found, _ = quick
    found.save(tmp_path / "saved")
    told = json.loads((tmp_path / "saved" / "verify.json").read_text())
    assert told["table"][0]["their_pearson"] is None  # nobody published digits
    assert_close(told["influences"][0]["removal"], found.mirrors[0].removal, rtol=1e-15, why="JSON keeps float64")
    with Image.open(found.plot(tmp_path / "seen.png")) as picture:
        assert picture.size[1] > 4 * 400  # four experiments, a row each
        inks = {colour for _, colour in picture.convert("RGB").getcolors(100_000)}
    assert min(abs(r - 27) + abs(g - 108) + abs(b - 168) for r, g, b in inks) < 30  # the first test's points are there


@pytest.mark.parametrize(
    ("asked", "told"),
    [({"data": "mnist", "quick": True}, "digits"), ({"data": "cats"}, "fashion"), ({"parts": ["group"]}, "groups"),
     ({"parts": "convex"}, "a list"), ({"parts": []}, "a list")],
)  # fmt: skip
def test_what_cannot_be_verified_is_refused(asked, told):
    with pytest.raises(fi.SettingError, match=told):
        fi.verify(**asked, progress=False)


def test_a_missing_data_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("FORWARDINF_DATA", raising=False)
    with pytest.raises(fi.DataError, match="FORWARDINF_DATA"):
        fi.verify("mnist")
    with pytest.raises(fi.DataError, match=r"mnist/mnist\.npz"):
        fi.verify("mnist", data_dir=tmp_path)


SMALL = verify_groups.GroupPlan(160, 600, 100, wrong=0.25, epochs=8, groups=3, lr=0.05, batch=32)


def test_groups_are_the_published_ones_and_ones_of_equal_share():
    groups = verify_groups.make_groups(pictures("digits"), SMALL, 42)
    assert groups.wrong.sum() == 40
    truth = pictures("digits").labels[torch.from_numpy(split(1797, 160, 600, 42)[0])]
    assert ((groups.labels[:160] != truth).numpy() == groups.wrong).all()
    assert [groups.wrong[group].sum() for group in groups.sweep] == [0, 20, 40]
    assert {groups.wrong[group].sum() for group in groups.same} == {10}  # a quarter of 40
    assert {len(set(group)) for group in (*groups.sweep, *groups.same)} == {40}
    assert np.bincount(groups.labels[160:]).tolist() == [10] * 10


@pytest.mark.whole
def test_group_trainings_are_seeded_kept_and_signed(tmp_path, monkeypatch):
    found = verify_groups.group_check(pictures("digits"), SMALL, tmp_path, 42, [5, 6], False)
    assert len(list(tmp_path.glob("seed-*/t-*.npz"))) == 2 * (2 + 2 * 3)  # the tests are added once, not once a group
    sweep, same = found
    assert sweep.removal[0, 0] > max(0, sweep.removal[0, -1])  # right labels help the tests, more than wrong ones
    assert sweep.addition[0, 0] > 0 > sweep.addition[0, -1]
    assert np.ptp(same.facts["wrong_share"]) == 0
    a, b = np.array(sweep.facts["removal_by_seed"])
    assert np.abs(a - b).max() > 1e-3  # seeds seed
    monkeypatch.setattr(verify_groups, "network", None)  # a training would fail
    again = verify_groups.group_check(pictures("digits"), SMALL, tmp_path, 42, [6, 5], False)
    assert_close(again[0].removal, sweep.removal, rtol=1e-12, why="the same files in another order")


def test_a_training_depends_on_its_seed_alone():
    one = verify_groups.GroupPlan(**{**vars(SMALL), "epochs": 1, "groups": 1})
    groups = verify_groups.make_groups(pictures("digits"), one, 42)
    first, second = (verify_groups.group_losses(groups, one, 9, None, False) for _ in range(2))
    assert_close(first["train"], second["train"], rtol=1e-12, why="one seed, one thread: the same bits")


def test_the_ceiling_of_noise_is_what_two_noisy_copies_reach():
    draw = np.random.default_rng(0)
    truth = draw.normal(size=4000)
    removal, addition = (truth + draw.normal(size=(5, 4000)) for _ in range(2))
    reached = np.corrcoef(removal.mean(0), addition.mean(0))[0, 1]
    assert_within(
        verify_groups.ceiling(removal, addition), reached, atol=0.02, why="4,000 groups: error about 1/sqrt(4000)"
    )
    assert np.isnan(verify_groups.ceiling(removal[:1], addition[:1]))
