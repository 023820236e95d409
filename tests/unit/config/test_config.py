from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dfer_dist.config.load import config_dir, dump_config, load_config, read_config
from dfer_dist.config.schema import (
    Config,
    DataConfig,
    Selection,
    TextPolarity,
    config_hash,
    flatten,
    split_batch,
)
from dfer_dist.utils.errors import UserError
from tests.helpers.paths import ROOT

CONFIGS = ROOT / "configs"
# published.yaml has the metrics of papers.
EXPERIMENTS = sorted({f.stem for f in CONFIGS.glob("*.yaml")} - {"published"})
DFEW = {"data.shards": "data/dfew", "data.augment.brightness": 0.5}
PUBLISHED = {
    "dfew_vitb32": DFEW,
    "dfew_vitb16": DFEW | {"model.backbone": "ViT-B-16-quickgelu"},
    "dfew_vitl14": DFEW | {"model.backbone": "ViT-L-14-quickgelu", "model.checkpoint_image": True},
    "dfew_vith14": DFEW
    | {
        "model.backbone": "ViT-H-14",
        "model.pretrained": "laion2b_s32b_b79k",
        "model.checkpoint_image": True,
    },
    "mafw_vitb32": {"data.shards": "data/mafw"},
    "ferv39k_vitb32": {"data.shards": "data/ferv39k", "data.augment.rotation": 4.0},
}
# DFER-CLIP, BMVC'23, section 4.1, and the augmentation in the authors' code that all sets share.
RECIPE = {
    "data.num_frames": 16,
    "data.image_size": None,  # the backbone's: 224
    "data.augment.crop_scale": 0.08,
    "data.augment.flip": True,
    **dict.fromkeys(
        ("data.augment.brightness", "data.augment.rotation", "optim.warmup_epochs"), 0.0
    ),
    "model.backbone": "ViT-B-32-quickgelu",
    "model.pretrained": "openai",
    "model.text": "descriptions",
    "model.context_tokens": 8,
    "model.class_specific": True,
    "model.temporal_layers": 1,
    "model.temporal_heads": 8,
    "model.temporal_mlp": 1024,
    "model.temperature": 0.01,
    "model.normalize": False,
    "optim.name": "sgd",
    "optim.momentum": 0.9,
    "optim.weight_decay": 1e-4,
    "optim.lr_image": 1e-5,
    "optim.lr_temporal": 1e-2,
    "optim.lr_prompt": 1e-3,
    "optim.schedule": "step",
    "optim.milestones": [30, 40],
    "optim.gamma": 0.1,
    "train.epochs": 50,
    "train.global_batch": 48,
}


def demo(*arguments: str) -> Config:
    return load_config("demo", ["data.shards=x", *arguments])


def refused(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        demo(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(path: Path) -> dict[str, object]:
    """Settings of a YAML file by dotted key; sentences by class are one."""
    tree, settings = OmegaConf.load(path), flatten(Config())

    def walk(node: object, prefix: str) -> dict[str, object]:
        if isinstance(node, dict) and prefix[:-1] not in settings:
            return {
                k: v
                for key, child in node.items()
                for k, v in walk(child, f"{prefix}{key}.").items()
            }
        return {prefix[:-1]: node}

    return walk(OmegaConf.to_container(tree), "")


def test_all_published_experiments_have_a_file() -> None:
    assert set(EXPERIMENTS) >= {"demo", *PUBLISHED}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_file_holds_only_differences_and_is_complete(name: str) -> None:
    default = flatten(Config(data=DataConfig(shards="of the command line")))
    config = load_config(
        name, [] if "data.shards" in written(CONFIGS / f"{name}.yaml") else ["data.shards=x"]
    )
    now = flatten(config)
    for key in written(CONFIGS / f"{name}.yaml"):
        assert now[key] != default[key], f"{key} is the default already"
    assert "???" not in now.values()
    assert (CONFIGS / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("name", PUBLISHED)
def test_experiment_has_the_published_recipe(name: str) -> None:
    flat = flatten(load_config(name))
    wanted = RECIPE | PUBLISHED[name]
    assert {k: flat[k] for k in wanted} == wanted
    assert {k for k, default in flatten(Config()).items() if flat[k] != default} == set(
        PUBLISHED[name]
    )  # and nothing else


def test_experiments_of_a_checkout_are_the_top_level_ones() -> None:
    assert config_dir().resolve() == CONFIGS


def test_command_line_wins_over_file_and_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: {shards: x}\ntrain: {epochs: 7}\n")
    assert load_config(str(file)).train.epochs == 7
    assert load_config(str(file)).train.global_batch == 48
    assert load_config(str(file), ["train.epochs=3"]).train.epochs == 3
    assert load_config(str(file), ["train.epochs=3", "train.epochs=4"]).train.epochs == 4


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("train.epoch=3", "train.epochs"),
        ("traim.epochs=3", "train.epochs"),
        ("epochs=3", "train.epochs"),
        ("data.augment.rot=3", "data.augment.rotation"),
        ("train.microbatch=3", "train.micro_batch"),
    ],
)
def test_unknown_key_names_the_nearest(word: str, key: str) -> None:
    text = refused(word)
    assert "unknown key" in text
    assert f"did you mean '{key}'?" in text


def test_unknown_key_with_nothing_near_gives_no_hint() -> None:
    text = refused("zzzzzz=3")
    assert "unknown key 'zzzzzz'" in text
    assert "did you mean" not in text


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("train.epochs=many", "train.epochs"),
        ("train.epochs.x=3", "'train.epochs' is a single value, not a group of settings"),
        ("model.sentences=[a]", "'model.sentences' is a group of settings, not a list"),
        ("model=3", "'model' is a group of settings, not a single value"),
        ("train.epochs=3.7", "train.epochs"),
        ("train.epochs=true", "train.epochs"),
        ("train.epochs=null", "train.epochs"),
        ("train.precision=fp8", "train.precision"),
        ("optim.milestones=3", "'optim.milestones' is a list, not a single value"),
        ("optim.milestones=[3.5]", "optim.milestones"),
        ("optim.milestones[0]=3", "optim.milestones"),
        ("data.augment.flip=perhaps", "data.augment.flip"),
        ("data.shards=", "data.shards"),
        ("data.shards=${nope}", "data.shards"),
        ("data.shards=${oc.env:NO_SUCH_VARIABLE}", "data.shards"),
        ("train=3", "train"),
        ("data=null", "data"),
    ],
)
def test_wrong_type_names_the_key(word: str, key: str) -> None:
    assert key in refused(word)


@pytest.mark.parametrize("word", ["train.epochs", "=3", "--epochs"])
def test_argument_without_key_and_value_is_refused(word: str) -> None:
    assert "not of the form key=value" in refused(word)


def test_value_that_is_not_yaml_is_refused() -> None:
    assert "cannot be read" in refused("train.epochs=[1")


OUT_OF_RANGE = """
    train.epochs=0 train.micro_batch=0 train.global_batch=-1 train.zero_stage=0
    train.zero_stage=4 train.seed=-1 train.seed=18446744073709551616 train.val_fraction=1 train.save_minutes=0 data.workers=-1
    data.augment.crop_scale=0 data.augment.crop_scale=1.1 data.augment.brightness=-0.1
    data.augment.rotation=-4 model.temperature=0 model.temperature=inf optim.lr_image=-1
    optim.lr_image=nan optim.lr_lora=-1 model.image_blocks=0 model.lora_rank=0
    model.lora_alpha=0 optim.gamma=-1 optim.momentum=-0.1 optim.warmup_epochs=-1 eval.batch=0
    optim.betas=[0.9] optim.betas=[0.9,1] optim.betas=[-0.1,0.9] optim.betas=[0.9,nan]
    model.drop_path=1 model.drop_path=-0.1 train.ema=1 train.ema=-0.1
    optim.layer_decay=0 optim.layer_decay=1.1 optim.min_lr=-1
"""


@pytest.mark.parametrize("word", OUT_OF_RANGE.split())
def test_value_out_of_range_names_the_key(word: str) -> None:
    assert word.partition("=")[0] in refused(word)


def test_smallest_rate_above_a_largest_one_is_refused() -> None:
    text = refused("optim.schedule=cosine", "optim.lr_prompt=1e-4", "optim.min_lr=2e-4")
    assert text == "optim.min_lr=0.0002 is above optim.lr_prompt=0.0001: set 0.0001 at most"
    demo("optim.schedule=step", "optim.lr_prompt=1e-4", "optim.min_lr=2e-4")
    demo("optim.schedule=cosine", "optim.lr_lora=1e-4", "optim.min_lr=2e-4")


def test_null_lists_and_enums_are_parsed() -> None:
    config = demo(
        "train.micro_batch=4",
        "train.micro_batch=null",
        "optim.milestones=[3,4]",
        "train.selection=best_val",
    )
    assert config.train.micro_batch is None
    assert config.optim.milestones == [3, 4]
    assert config.train.selection is Selection.best_val
    assert demo("optim.milestones=[]").optim.milestones == []
    assert demo("train.micro_batch=4").train.micro_batch == 4


def test_enums_are_given_by_name() -> None:
    flat = flatten(
        demo("optim.name=sgd", "optim.schedule=step", "train.precision=fp32", "model.text=names")
    )
    assert [flat[k] for k in ("optim.name", "optim.schedule", "train.precision", "model.text")] == [
        "sgd",
        "step",
        "fp32",
        "names",
    ]


def test_value_may_contain_equals_signs() -> None:
    assert demo("tracking.uri=http://host/?a=b").tracking.uri == "http://host/?a=b"


@pytest.mark.parametrize(
    "name",
    ["0123", "1e3", "yes", "2021-01-02", "a #b", "[v1] x", "{a}", "a: b", "%d", "*x", "日 本"],
)
def test_text_stays_as_it_is(tmp_path: Path, name: str) -> None:
    config = load_config("demo", [f"data.shards={name}", f"tracking.experiment={name}"])
    assert (config.data.shards, config.tracking.experiment) == (name, name)
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert read_config(tmp_path / "config.yaml") == config


def test_several_sets_are_a_list_with_weights_by_name(tmp_path: Path) -> None:
    arguments = ["data.shards=[data/a,https://x/b]", "data.mixture={b: 2}", "data.mixture.a=0.5"]
    data = load_config("demo", arguments).data
    assert data.locations == data.shards == ["data/a", "https://x/b"]
    assert data.mixture == {"a": 0.5, "b": 2.0}
    file = tmp_path / "two.yaml"
    file.write_text("data:\n  shards: [data/a, 'https://x/b']\n  mixture: {b: 2, a: 0.5}\n")
    assert load_config(str(file)).data.mixture == data.mixture
    file.write_text(dump_config(load_config("demo", arguments)))
    assert read_config(file).data == data
    assert read_config(file, ["data.shards=data/c"]).data.locations == ["data/c"]


def test_folder_of_shards_may_be_named_by_a_number(tmp_path: Path) -> None:
    file = tmp_path / "year.yaml"
    file.write_text("data:\n  shards: 2024\n")
    assert load_config(str(file)).data.locations == ["2024"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.shards=[]"], r"data\.shards=\[\]: give a folder or URL, or a list"),
        (["data.shards=[1,2]"], r"data\.shards=\[1, 2\]: give a folder or URL"),
        (["data.shards=null"], "data.shards=None: give a folder or URL"),
        (["data.mixture={a:1}"], r"'data\.mixture\.a:1' has no value: put a space after the colon"),
        (["data.mixture={a: 0}"], r"data\.mixture\.a=0\.0: must be greater than 0"),
        (["data.mixture={a: -1}"], r"data\.mixture\.a=-1\.0: must be greater than 0"),
        (["data.mixture={a: .inf}"], r"data\.mixture\.a=inf: must be greater than 0"),
        (["data.mixture={a: 2}", "data.balanced=true"], "each class equally often"),
    ],
)
def test_sets_and_weights_are_checked(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config("demo", arguments)


def test_text_may_be_quoted_or_null() -> None:
    given = ["tracking.experiment='a b'", 'data.shards="null"', "tracking.uri=null"]
    config = load_config("demo", ["tracking.uri=http://h", *given])
    assert (config.tracking.experiment, config.data.shards) == ("a b", "null")
    assert config.tracking.uri is None


def test_missing_value_names_the_key(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train:\n  epochs: 3\n")
    with pytest.raises(UserError, match=r"no value for data\.shards: give data\.shards="):
        load_config(str(file))


def test_unknown_experiment_names_the_nearest_and_all() -> None:
    with pytest.raises(UserError, match="did you mean 'dfew_vitb32'") as caught:
        load_config("dfew_vitb23", ["data.shards=x"])
    assert all(name in str(caught.value) for name in EXPERIMENTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "must hold keys and values, not a list"),
        ("train: [1\n", "cannot be read as YAML"),
        ("train:\n  epochs: 3\n  epochs: 4\n", "line 3: found duplicate key epochs"),
        ("train:\n  epoch: 3\n", "did you mean 'train.epochs'"),
        ("train:\n", "train"),
        ("\x00", "cannot be read as YAML"),
    ],
)
def test_bad_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(str(file), ["data.shards=x"])
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no experiment"):
        load_config(str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match="cannot be read"):
        read_config(tmp_path / "none.yaml")


def test_experiment_is_found_by_path_and_may_be_empty(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data:\n  shards: here\n")
    assert load_config(str(file)).data.shards == "here"
    file.write_text("# nothing\n")
    assert flatten(load_config(str(file), ["data.shards=x"])) == flatten(
        Config(data=DataConfig(shards="x"))
    )


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_dumped_config_is_read_back_equal(tmp_path: Path, name: str) -> None:
    config = load_config(
        name,
        [
            "data.shards=x",
            "optim.milestones=[3,4]",
            "train.micro_batch=null",
            "optim.lr_image=1e-6",
        ],
    )
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    again = read_config(file)
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert written(file).keys() == flatten(config).keys()  # every key is written out


@pytest.mark.parametrize(
    "word",
    [
        "train.seed=1",
        "optim.lr_prompt=0.1",
        "optim.milestones=[1]",
        "model.backbone=ViT-B-16",
        "train.precision=fp32",
        "eval.views=2",
        "data.sampling=dense",
    ],
)
def test_hash_changes_with_a_setting_that_changes_results(word: str) -> None:
    assert config_hash(demo(word)) != config_hash(demo())


NEUTRAL_SETTINGS = """
    data.workers=7 data.shards=elsewhere train.micro_batch=4 train.zero_stage=3
    train.save_minutes=3 train.device=cpu tracking.uri=http://host tracking.enabled=false
    model.checkpoint_image=true train.offload_optimizer=true eval.batch=3
    eval.shuffle_frames=false
"""


@pytest.mark.parametrize("word", NEUTRAL_SETTINGS.split())
def test_hash_ignores_a_neutral_setting(word: str) -> None:
    assert config_hash(demo(word)) == config_hash(demo())


def test_split_batch_gives_micro_batch_and_accumulation() -> None:
    config = demo("train.global_batch=48")
    assert [split_batch(config, world) for world in (1, 2, 4)] == [(48, 1), (24, 1), (12, 1)]
    micro = replace(config, train=replace(config.train, micro_batch=6))
    assert [split_batch(micro, world) for world in (1, 2, 4, 8)] == [(6, 8), (6, 4), (6, 2), (6, 1)]
    with pytest.raises(UserError, match=r"train\.global_batch=48 cannot be shared by 5 ranks"):
        split_batch(config, 5)
    with pytest.raises(UserError, match=r"train\.micro_batch=6.*divides 3"):
        split_batch(micro, 16)


VERSION_1 = """\
data: {shards: /data}
model:
  image: adapters
  levels: [parsing, landmarks]
  level_ratio: 0.25
  text_sides: both
"""


def test_stored_config_of_version_1_is_upgraded(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(VERSION_1)
    config = read_config(path, ["model.modality_ratio=0.5"])
    assert config.model.modalities == ["parsing", "landmarks"]
    assert config.model.modality_ratio == 0.5
    assert config.model.text_polarity is TextPolarity.both


def test_config_hash_is_that_of_version_1() -> None:
    config = Config()
    assert config_hash(config) == "ebda2f56975646cb"
    config.model.modalities, config.model.modality_ratio = ["parsing"], 0.25
    config.model.text_polarity = TextPolarity.both
    assert config_hash(config) == "722e1c9016f6b44c"


@pytest.mark.parametrize(
    ("old", "new"), [("levels=[parsing]", "modalities"), ("text_sides=both", "text_polarity")]
)
def test_command_line_refuses_a_key_of_version_1(old: str, new: str) -> None:
    with pytest.raises(UserError, match=rf"unknown key .*; it is now called 'model\.{new}'"):
        load_config("demo", [f"model.{old}"])


def test_experiment_file_refuses_a_key_of_version_1(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(VERSION_1)
    with pytest.raises(UserError, match=r"it is now called 'model\.modalities'"):
        load_config(str(path))
