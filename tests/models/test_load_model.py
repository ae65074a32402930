import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from forwardinf.core.errors import FileError, MissingExtra, ModelError, SettingError
from forwardinf.models.load import load_model
from forwardinf.models.weights import load_state

os.environ["HF_HUB_OFFLINE"] = "1"
DATA = os.environ.get("FORWARDINF_DATA")
# peft 0.21 asks transformers 5.23 for a property that transformers renames
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

MODULE = """
import torch
from torch import nn

def small(width=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Dropout(), nn.Linear(width, 1))

def meta():
    with torch.device("meta"):
        return nn.Linear(2, 1)

def words():
    return "a model"

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

ready = small()
number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"own_model_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    yield name
    sys.modules.pop(name, None)


def linear(seed=0, **settings):
    torch.manual_seed(seed)
    return nn.Linear(2, 1, **settings)


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and len(a) > 0 and all(torch.equal(a[name], b[name]) for name in a)


# Factories


def test_a_factory_gives_a_model_in_eval_mode(module):
    model = load_model(f"{module}:small", factory_options={"width": 4})
    assert model[0].out_features == 4
    assert not any(part.training for part in model.modules())
    assert load_model(f"{module}:ready")[0].out_features == 3


def test_dtype_and_device_are_as_asked(module):
    model = load_model(f"{module}:small", dtype="float64", device="cpu")
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float64}
    assert model[1].num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("smal", {}, SettingError, "Did you mean 'small'"),
        ("number", {}, SettingError, "function or class"),
        ("words", {}, ModelError, r"torch\.nn\.Module"),
        ("meta", {}, ModelError, "meta device"),
        ("ready", {"factory_options": {"width": 2}}, SettingError, "already"),
        ("small", {"allow_code": False}, SettingError, "--allow-code"),
        ("small", {"dtype": "int8"}, SettingError, "float32"),
        ("small", {"dtype": "floaty"}, SettingError, "float32"),
        ("small", {"device": "nowhere"}, SettingError, "device"),
        ("small", {"weights_key": "state_dict"}, SettingError, "weights="),
        ("small", {"weights": "nowhere.safetensors"}, FileError, "nothing at this path"),
    ],
)
def test_a_factory_or_setting_that_does_not_fit_is_refused(module, name, settings, error, message):
    with pytest.raises(error, match=message):
        load_model(f"{module}:{name}", **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_refused(module):
    with pytest.raises(SettingError, match="device of this machine"):
        load_model(f"{module}:small", device="cuda")


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("what is this?", SettingError, "module:factory"),
        ("no_such_module:small", SettingError, "no_such_module"),
        ("weights.safetensors", SettingError, "weights="),
        ("nobody/nothing-of-this-name", FileError, "no such path"),
    ],
)
def test_a_spec_of_no_form_is_refused(spec, error, message):
    with pytest.raises(error, match=message):
        load_model(spec)


def test_factory_options_without_a_factory_are_refused(tmp_path):
    with pytest.raises(SettingError, match="factory_options"):
        load_model(tmp_path, factory_options={"width": 3})


def test_a_folder_of_nothing_known_is_refused(tmp_path):
    with pytest.raises(FileError, match=r"config\.json"):
        load_model(tmp_path)


# Weight files


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth", "th", "bin", "ckpt"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_weights_load_from_every_kind_of_file_whatever_wrapped_the_model(tmp_path, suffix, prefix):
    trained, path = linear(1), tmp_path / f"weights.{suffix}"
    state = {prefix + name: value for name, value in trained.state_dict().items()}
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    model = load_model("torch.nn:Linear", factory_options={"in_features": 2, "out_features": 1}, weights=path)
    assert same(model, trained)


def test_weights_load_into_a_wrapped_model_in_place(tmp_path):
    model, trained = nn.DataParallel(linear(0)), linear(1)
    before = model.module.weight
    load_state(model, trained.state_dict())
    assert model.module.weight is before
    assert same(model.module, trained)


def test_a_model_that_has_a_part_called_module_keeps_its_names():
    model, trained = linear(0), linear(1)
    model.module, trained.module = linear(2), linear(3)
    load_state(model, trained.state_dict())
    assert same(model, trained)


@pytest.mark.parametrize("key", ["state_dict", "deep.state_dict", "deep.down.model"])
def test_weights_key_goes_into_the_file(tmp_path, key):
    trained = linear(1)
    state = trained.state_dict()
    content = {"state_dict": state, "deep": {"state_dict": state, "down": {"model": state}}, "epoch": 3}
    torch.save(content, tmp_path / "weights.pt")
    model = linear(0)
    load_state(model, tmp_path / "weights.pt", weights_key=key)
    assert same(model, trained)
    other = linear(0)
    load_state(other, content, weights_key=key)
    assert same(other, trained)


@pytest.mark.parametrize(("key", "error", "message"), [(None, FileError, "weights_key= with one of state_dict"),
                                                       ("state_dcit", SettingError, "Did you mean 'state_dict'"),
                                                       ("epoch", FileError, "something else"),
                                                       ("epoch.now", SettingError, "a mapping at 'now'")])  # fmt: skip
def test_a_wrong_weights_key_is_refused(tmp_path, key, error, message):
    torch.save({"state_dict": linear(1).state_dict(), "epoch": 3}, tmp_path / "weights.pt")
    with pytest.raises(error, match=message):
        load_state(linear(0), tmp_path / "weights.pt", weights_key=key)


class Runs:
    """An object whose unpickling would leave a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("suffix", ["pt", "bin", "ckpt"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path, suffix):
    torch.save({"weight": Runs(tmp_path / "ran")}, tmp_path / f"weights.{suffix}")
    with pytest.raises(FileError, match="safetensors"):
        load_state(linear(), tmp_path / f"weights.{suffix}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.bin"])
def test_a_damaged_file_is_refused(tmp_path, name):
    whole = tmp_path / f"whole{Path(name).suffix}"
    save_file(linear(1).state_dict(), whole) if name.endswith("tensors") else torch.save(linear(1).state_dict(), whole)
    for content in (whole.read_bytes()[:-20], b"", b"plainly wrong"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileError, match="damaged"):
            load_state(linear(), tmp_path / name)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "weights.h5").write_bytes(b"")
    with pytest.raises(FileError, match=r"\.safetensors"):
        load_state(linear(), tmp_path / "weights.h5")


# What fits


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.ones(1, 2)}, "1 missing: bias"),
        ({"weight": torch.ones(1, 2), "bias": torch.ones(1), "scale": torch.ones(1)}, "1 unexpected: scale"),
        ({"weight": torch.ones(1, 3), "bias": torch.ones(1)}, r"weight \[1, 3\], not \[1, 2\]"),
        ({f"layer{index}": torch.ones(1) for index in range(5)}, "5 unexpected: layer0, layer1, layer2 …"),
        ({"weight": torch.ones(1, 2), "module.weight": torch.ones(1, 2), "bias": torch.ones(1)}, "two for weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_written(state, message):
    model = linear(0)
    with pytest.raises(ModelError, match=message):
        load_state(model, state)
    assert same(model, linear(0))


def test_a_checkpoint_that_changes_nothing_is_refused(tmp_path):
    model = linear(0)
    save_file(model.state_dict(), tmp_path / "same.safetensors")
    for checkpoint in (tmp_path / "same.safetensors", model.state_dict(), model, linear(0)):
        with pytest.raises(ModelError, match="same values"):
            load_state(model, checkpoint)
    load_state(model, linear(1))
    assert same(model, linear(1))


def test_values_are_converted_to_the_models_own_dtype_and_flags_are_kept():
    model = linear(0).double().train()
    model.bias.requires_grad_(False)
    load_state(model, linear(1))
    assert model.weight.dtype == torch.float64
    assert torch.equal(model.weight, linear(1).weight.double())
    assert model.training
    assert not model.bias.requires_grad


@pytest.mark.parametrize("checkpoint", [3, None, [1, 2], {}])
def test_a_checkpoint_of_another_kind_is_refused(checkpoint):
    with pytest.raises((SettingError, FileError), match="checkpoint"):
        load_state(linear(), checkpoint)


@pytest.mark.parametrize("save", [save_model, lambda model, path: torch.save(model.state_dict(), path)])
def test_of_tied_tensors_one_is_enough(tmp_path, module, save):
    trained = load_model(f"{module}:Tied")
    model = load_model(f"{module}:Tied")
    path = tmp_path / ("weights.safetensors" if save is save_model else "weights.pt")
    save(trained, path)
    load_state(model, path)
    assert same(model, trained)
    assert model.head.weight is model.embed.weight


def test_two_values_for_tied_tensors_are_refused(module):
    model = load_model(f"{module}:Tied")
    with pytest.raises(ModelError, match="ties them"):
        load_state(model, {"embed.weight": torch.zeros(5, 3), "head.weight": torch.ones(5, 3)})


@pytest.mark.parametrize("index", [False, True])
def test_a_folder_with_weights_only_loads_in_one_file_or_many(tmp_path, index):
    trained, model = linear(1), linear(0)
    if index:
        save_file({"weight": trained.weight}, tmp_path / "part1.safetensors")
        save_file({"bias": trained.bias}, tmp_path / "part2.safetensors")
        (tmp_path / "model.safetensors.index.json").write_text(
            '{"weight_map": {"weight": "part1.safetensors", "bias": "part2.safetensors"}}'
        )
    else:
        save_file(trained.state_dict(), tmp_path / "model.safetensors")
    load_state(model, tmp_path)
    assert same(model, trained)
    with pytest.raises(SettingError, match="weights_key"):
        load_state(model, tmp_path, weights_key="model")


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(FileError, match="none of them"):
        load_state(linear(), tmp_path)


# Hugging Face


def bert(seed=0, labels=2, kind="BertForSequenceClassification"):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16, num_labels=labels,
    )  # fmt: skip
    return getattr(transformers, kind)(config).eval()


def gpt(seed=0):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).eval()


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_transformers_folder_loads_as_the_class_that_saved_it(tmp_path):
    for trained in (bert(labels=3), gpt()):
        trained.save_pretrained(tmp_path / "model")
        model = load_model(tmp_path / "model")
        assert type(model) is type(trained)
        assert same(model, trained)
        assert not model.training


def test_a_model_in_half_precision_stays_so_unless_a_dtype_is_given(tmp_path):
    bert().bfloat16().save_pretrained(tmp_path)
    assert load_model(tmp_path, dtype="float32").dtype == torch.float32


def test_without_a_named_architecture_the_class_that_uses_every_tensor_is_taken(tmp_path):
    transformers = pytest.importorskip("transformers")
    bert(labels=3).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", '"BertForSequenceClassification"', "")
    assert type(load_model(tmp_path)).__name__ == "BertForSequenceClassification"
    trained = transformers.GPT2ForSequenceClassification(gpt().config)  # its language model head is tied: never missing
    trained.save_pretrained(tmp_path / "gpt")
    edit(tmp_path / "gpt/config.json", '"GPT2ForSequenceClassification"', "")
    assert same(load_model(tmp_path / "gpt"), trained)


def test_weights_that_leave_a_part_at_random_are_refused(tmp_path):
    bert(kind="BertModel").save_pretrained(tmp_path)
    edit(tmp_path / "config.json", '"BertModel"', '"BertForSequenceClassification"')
    with pytest.raises(ModelError, match=r"2 missing: classifier\.bias"):
        load_model(tmp_path)


def test_code_in_a_models_folder_is_refused_unless_transformers_has_the_architecture(tmp_path):
    trained = bert()
    trained.save_pretrained(tmp_path)
    (tmp_path / "own.py").write_text("raise SystemExit('ran')")
    edit(tmp_path / "config.json", '"architectures"', '"auto_map": {"AutoModel": "own.Own"}, "architectures"')
    assert same(load_model(tmp_path), trained)
    edit(tmp_path / "config.json", '"BertForSequenceClassification"', '"OwnForClassification"')
    with pytest.raises(FileError, match=r"auto_map.*never run"):
        load_model(tmp_path)


def test_an_unknown_architecture_is_refused(tmp_path):
    bert().save_pretrained(tmp_path)
    edit(tmp_path / "config.json", '"BertForSequenceClassification"', '"BertForEverything"')
    with pytest.raises(FileError, match="BertForEverything"):
        load_model(tmp_path)


def test_a_transformers_folder_with_pickled_weights_loads_only_if_they_are_tensors(tmp_path):
    trained = bert()
    trained.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(trained.state_dict(), tmp_path / "pytorch_model.bin")
    assert same(load_model(tmp_path), trained)
    torch.save({**trained.state_dict(), "extra": Runs(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(FileError, match="without running code"):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_transformers_folder_is_refused(tmp_path):
    bert().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FileError, match="Fetch a damaged file again"):
        load_model(tmp_path)
    weights.unlink()
    with pytest.raises(FileError, match="weights"):
        load_model(tmp_path)
    for content in ("{", "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(FileError, match="JSON"):
            load_model(tmp_path)


def test_a_checkpoint_folder_loads_into_a_model_in_place(tmp_path):
    for make in (bert, gpt):
        model = make(0)
        before = next(model.parameters())
        make(1).save_pretrained(tmp_path / f"{make.__name__}-checkpoint-500")
        load_state(model, tmp_path / f"{make.__name__}-checkpoint-500")
        assert same(model, make(1))
        assert next(model.parameters()) is before
        with pytest.raises(ModelError, match="same values"):
            load_state(model, tmp_path / f"{make.__name__}-checkpoint-500")


def test_a_checkpoint_folder_of_another_shape_is_refused(tmp_path):
    bert(labels=5).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="classifier"):
        load_state(bert(labels=2), tmp_path)


def test_a_folder_can_be_the_weights_of_another(tmp_path):
    bert(0).save_pretrained(tmp_path / "final")
    bert(1).save_pretrained(tmp_path / "checkpoint-500")
    assert same(load_model(tmp_path / "final", weights=tmp_path / "checkpoint-500"), bert(1))


@pytest.mark.whole
def test_a_hub_id_loads_from_the_hubs_own_cache(tmp_path):
    cache = tmp_path / "models--somebody--tiny"
    bert(3).save_pretrained(cache / "snapshots/abc")
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("abc")
    ask = (
        "from forwardinf.models.load import load_model\n"
        "model = load_model('somebody/tiny')\n"
        "print(type(model).__name__, float(model.classifier.weight[0, 0]))"
    )
    settings = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", ask], env=settings, capture_output=True, text=True, check=False)
    name, value = done.stdout.split() or (done.stderr, "nan")
    assert name == "BertForSequenceClassification"
    assert float(value) == bert(3).classifier.weight[0, 0].item()


def test_without_transformers_the_extra_is_named(tmp_path, monkeypatch):
    bert().save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"forwardinf\[hf\]"):
        load_model(tmp_path)


# Adapters


def adapted(seed=0, rank=2, alpha=8, base=None):
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules=["c_attn"], fan_in_fan_out=True,
        init_lora_weights=False,
    )  # fmt: skip
    base = base or gpt(5)
    torch.manual_seed(seed)
    return peft.get_peft_model(base, settings).eval()


@pytest.fixture
def adapter(tmp_path):
    """A folder with a base and an adapter whose settings name the base relative to themselves."""
    gpt(5).save_pretrained(tmp_path / "run/base")
    adapted().save_pretrained(tmp_path / "run/adapter")
    settings = tmp_path / "run/adapter/adapter_config.json"
    edit(settings, '"base_model_name_or_path": null', '"base_model_name_or_path": "../base"')
    return tmp_path / "run/adapter"


def test_an_adapter_folder_loads_trainable_on_its_base(adapter, monkeypatch):
    monkeypatch.chdir("/")
    model = load_model(adapter)
    trained = adapted()
    assert same(model, trained)
    assert not model.training
    moves = [name for name, tensor in model.named_parameters() if tensor.requires_grad]
    assert moves
    assert all("lora_" in name for name in moves)
    ids = torch.arange(6)[None]
    assert torch.equal(model(input_ids=ids).logits, trained(input_ids=ids).logits)


def test_an_adapter_without_a_base_is_refused(adapter):
    edit(adapter / "adapter_config.json", '"../base"', "null")
    with pytest.raises(FileError, match="base model"):
        load_model(adapter)


def test_an_adapter_with_tensors_missing_is_refused(adapter):
    save_file({"nothing": torch.zeros(1)}, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="every tensor of the adapter"):
        load_model(adapter)


def test_a_damaged_adapter_is_refused(adapter):
    (adapter / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(FileError, match="adapter"):
        load_model(adapter)


def test_an_adapter_checkpoint_loads_into_a_peft_model_in_place(tmp_path, adapter):
    model = load_model(adapter)
    moved = dict(model.named_parameters())
    adapted(seed=1).save_pretrained(tmp_path / "checkpoint-10")
    load_state(model, tmp_path / "checkpoint-10")
    assert same(model, adapted(seed=1))
    assert all(tensor is moved[name] for name, tensor in model.named_parameters())
    with pytest.raises(ModelError, match="same values"):
        load_state(model, tmp_path / "checkpoint-10")
    assert same(load_model(adapter, weights=tmp_path / "checkpoint-10"), adapted(seed=1))


@pytest.mark.parametrize(
    ("settings", "message"), [({"alpha": 16}, "lora_alpha 16, not 8"), ({"rank": 3}, "r 3, not 2")]
)
def test_an_adapter_checkpoint_with_other_settings_is_refused(tmp_path, settings, message):
    adapted(seed=1, **settings).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_state(adapted(), tmp_path)


def test_an_adapter_checkpoint_with_other_tensors_is_refused(tmp_path):
    adapted(seed=1).save_pretrained(tmp_path)
    model = adapted()
    save_file({"base_model.model.nothing.lora_A.weight": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"2 missing.*1 unexpected"):
        load_state(model, tmp_path)
    assert same(model, adapted())


def test_an_adapter_for_a_model_without_one_is_refused(tmp_path):
    adapted().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="a PEFT model"):
        load_state(gpt(5), tmp_path)


# Diffusion


def unet(seed=0):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(seed)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


def test_a_diffusers_folder_loads_and_its_checkpoints_too(tmp_path):
    unet(0).save_pretrained(tmp_path / "unet")
    unet(1).save_pretrained(tmp_path / "checkpoint")
    model = load_model(tmp_path / "unet")
    assert same(model, unet(0))
    load_state(model, tmp_path / "checkpoint")
    assert same(model, unet(1))


def test_a_whole_pipeline_is_refused_with_its_parts(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(SettingError, match=f"{tmp_path}/unet"):
        load_model(tmp_path)
    assert same(load_model(tmp_path / "unet"), unet())


def test_a_diffusers_folder_without_a_model_is_refused(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    unet().save_pretrained(tmp_path)
    edit(tmp_path / "config.json", '"UNet2DModel"', '"UNetOfOurOwn"')
    with pytest.raises(FileError, match="UNetOfOurOwn"):
        load_model(tmp_path)
    edit(tmp_path / "config.json", '"UNetOfOurOwn"', '"DDPMScheduler"')
    assert diffusers.DDPMScheduler
    with pytest.raises(FileError, match="DDPMScheduler"):
        load_model(tmp_path)


def test_diffusers_weights_that_leave_a_part_at_random_are_refused(tmp_path):
    unet().save_pretrained(tmp_path)
    state = unet().state_dict()
    state.pop("conv_in.weight")
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises((ModelError, FileError), match="conv_in"):
        load_model(tmp_path)


def test_without_diffusers_the_extra_is_named(tmp_path, monkeypatch):
    unet().save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtra, match=r"forwardinf\[diffusion\]"):
        load_model(tmp_path)


# The data folder


@pytest.mark.data
@pytest.mark.skipif(not DATA, reason="FORWARDINF_DATA does not name the data folder")
def test_real_weights_load_into_the_model_their_readme_describes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "real_cnn.py").write_text(
        "from torch import nn\n\ndef cnn():\n    return nn.Sequential(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), "
        "nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10))\n"
    )
    model = load_model("real_cnn:cnn", weights=f"{DATA}/models/small_cnn/mnist_robust_cnn.safetensors")
    load_state(model, f"{DATA}/models/small_cnn/fashion_mnist_robust_cnn.safetensors")
    with pytest.raises(ModelError, match="missing"):
        load_state(model, f"{DATA}/models/cifar10_resnets/resnet20.safetensors")
