"""The repository uses the field's words, not those of the project's first version."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.helpers.code_size import product_files
from tests.helpers.paths import ROOT

# Old word: what to write instead.
WORDS = {
    "beside": "next to",
    "described": "name the output",
    "draws": "augmentation parameters, samples",
    "element": "array task",
    "elements": "array tasks",
    "epitaph": "describe_exit",
    "figures": "metrics, numbers",
    "film": "video",
    "films": "videos",
    "floor": "upper bound",
    "hopeless": "failed",
    "lend": "export",
    "lies": "is stored",
    "levels": "modalities",
    "masters": "master weights, optimizer state",
    "mend": "fix",
    "mendable": "is_user_error",
    "neighbours": "local ranks",
    "odd": "unexpected",
    "painter": "renderer",
    "persons": "the user's",
    "pointed": "read_pointer",
    "room": "buffer, space",
    "rooms": "buffers, packages",
    "saver": "checkpointer",
    "sender": "uploader",
    "served": "pyfunc",
    "settle": "wait, resolve",
    "sides": "polarity",
    "standing": "committed_bytes",
    "stands": "is",
    "strangers": "unexpected",
    "surest": "most confident",
    "told": "preempted, recorded",
    "tracker": "metrics log",
    "trackrun": "mlflow_runs",
    "undone": "rolled back",
    "ways": "variants",
    "wish": "job request",
    "words": "arguments, text, message",
}
PHRASES = {
    "goes on": "resumes, continues",
    "go on": "resume, continue",
    "a person": "the user",
    "take up": "load_state_dict",
    "last words": "finalize_run",
    "hold out": "train_val_split",
    "sitting out": "num_dropped",
    "whole shards": "all_clips",
    "worth it": "should_requeue",
}
# Former names of functions and classes that are ordinary words elsewhere.
NAMES = {
    "Ask": "BatchRequest",
    "Found": "ClipHandle",
    "Place": "SampleRef",
    "Reader": "CaptionTokenizer",
    "Target": "ClusterTarget",
    "alone": "file_lock",
    "ask": "query_squeue",
    "damage": "find_corruption",
    "look": "get_state",
    "neighbours": "local_ranks",
    "point": "set_pointer",
    "reading": "tokenizer",
    "share": "broadcast_object",
    "sum": "all_reduce_sum",
    "take": "acquire",
    "tell": "logger.info",
}
# File: word and the reason why it is right there.
ALLOWED: dict[str, dict[str, str]] = {
    "CHANGELOG.md": dict.fromkeys(("figures", "levels", "sides"), "former names of keys"),
    "LICENSE": {"persons": "the text of the MIT licence"},
    "docs/guides/captions.md": {"words": "label words"},
    "docs/models/demo-clip.md": {"a person": "the text of a caption"},
    "docs/models/finecliper.md": {"a person": "the text of a class prompt"},
    "Makefile": {"words": "the name of this file"},
    "configs/demo_finecliper.yaml": {"beside": "the text of a class prompt"},
    "benchmarks/write.py": {"floor": "a key of the results"},
    "dfer_dist/data/captions/endpoint.py": {"words": "of the prompt, which is hashed"},
    "dfer_dist/data/captions/label_leakage.py": {
        "hopeless": "a label word",
        "words": "label words",
    },
    "dfer_dist/data/captions/store.py": {"words": "label words"},
    "dfer_dist/data/faces/alignment.py": {"floor": "numpy's function"},
    "dfer_dist/data/loading/modalities.py": {"floor": "numpy's function"},
    "dfer_dist/data/video/packets.py": {"floor": "the function of math"},
    "tests/integration/bench/test_bench_commands.py": {"floor": "a key of the results"},
    "tests/integration/bench/test_bench_step.py": {"floor": "a key of the results"},
    "tests/integration/data/test_describe.py": {"words": "label words"},
    "dfer_dist/bench/loader.py": {"floor": "a key of the results"},
    "dfer_dist/bench/startup.py": {"floor": "a key of the results"},
    "dfer_dist/bench/step.py": {"floor": "a key of the results"},
    "launch/commands/bench.py": {"floor": "a key of the results"},
    "launch/commands/describe.py": {"words": "label words"},
    "tests/integration/launch/test_help.py": {"words": "a variable of the shell"},
    "tests/test_words.py": {"*": "it lists the words"},
    "dfer_dist/checkpoints/state.py": {"levels": "a key in files of version 1"},
    "dfer_dist/config/model.py": {"a person": "the text of a class prompt"},
    "dfer_dist/training/result.py": {"described": "a key of result.json"},
    "dfer_dist/inference/templates/try_model.html": {"element": "a function of JavaScript"},
    "docs/scripts/report_page.py": {"element": "a property of JavaScript"},
    "launch/slurm/state.py": {"told": "a reason in files of version 1"},
    "dfer_dist/config/schema.py": dict.fromkeys(("levels", "sides"), "settings of version 1"),
    "dfer_dist/runs/records.py": dict.fromkeys(
        ("described", "levels", "undone"), "keys in files of version 1"
    ),
    "docs/reference/configuration.md": {"a person": "the text of a class prompt"},
    "docs/reference/run-folder.md": dict.fromkeys(
        ("levels", "sides", "undone"), "settings and keys of version 1"
    ),
    "tests/fixtures/make_v1.py": dict.fromkeys(("levels", "sides"), "settings of version 1"),
    "tests/integration/compatibility/test_v1_files.py": {"sides": "a setting of version 1"},
    "tests/helpers/training/trials.py": {"undone": "a key of status.json"},
    "tests/integration/training/test_descriptions.py": {"described": "a key of result.json"},
    "tests/slurm/test_resuming.py": {"undone": "a key of status.json"},
    "tests/unit/config/test_config.py": dict.fromkeys(("levels", "sides"), "settings of version 1"),
    "tests/unit/runs/test_records.py": dict.fromkeys(
        ("levels", "undone"), "keys in files of version 1"
    ),
    "tests/unit/runs/test_status.py": {"undone": "a key in files of version 1"},
    "tests/unit/utils/test_records.py": {"levels": "a key in files of version 1"},
    "tests/unit/data/captions/test_label_leakage.py": {"words": "label words"},
    "dfer_dist/demo/captions.py": {
        "a person": "the text of a caption",
        "beside": "the text of a caption",
        "words": "label words",
    },
    "dfer_dist/demo/dataset.py": {"floor": "numpy's function"},
    "dfer_dist/inference/exported.py": {"levels": "a key in model.json"},
    "dfer_dist/inference/model_card.py": {"levels": "a key in state.json"},
    "dfer_dist/models/class_texts.py": dict.fromkeys(
        ("a person", "beside"), "the text of a class prompt"
    ),
    "dfer_dist/reporting/protocol.py": {"described": "a key in result.json"},
    "tests/helpers/made_runs.py": {"undone": "a key in status.json"},
    "tests/integration/evaluation/test_zero_shot.py": {"a person": "the text of a class prompt"},
    "tests/integration/inference/test_export.py": {"a person": "the text of a class prompt"},
    "tests/integration/inference/test_serve.py": {"element": "a property of JavaScript"},
    "tests/integration/reporting/test_report_command.py": {"element": "a property of JavaScript"},
    "tests/integration/models/test_modalities.py": {"levels": "a key in result.json"},
    "tests/unit/launch/test_tables.py": {
        "floor": "a key of the results",
        "undone": "a key in status.json",
    },
    "tests/unit/models/test_adapters.py": {"a person": "the text of a class prompt"},
    "tests/unit/models/test_cpu_kernels.py": {"elements": "a method of Counter"},
    "tests/unit/reporting/comparison/test_published.py": {"figures": "a former key of a file"},
    "tests/unit/reporting/test_history.py": {"undone": "a key in status.json"},
}
# Files that version 1 wrote.
VERSION_1 = "tests/fixtures/v1/"
_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def tracked_texts() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of every tracked text file."""
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, done.stdout.split("\0")):
        file = ROOT / name
        if file.is_symlink() or not file.is_file() or name.startswith(VERSION_1):
            continue
        data = file.read_bytes()
        if b"\0" not in data:
            yield name, data.decode("utf-8", "replace")


def found(text: str) -> set[str]:
    """Return the old words and phrases in ``text``, identifiers split at ``_`` and capitals."""
    parts = [part.lower() for part in _PART.findall(text)]
    pairs = {f"{a} {b}" for a, b in pairwise(parts)}
    return (set(parts) & WORDS.keys()) | (pairs & PHRASES.keys())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("read_film(Films, toldYou)", {"film", "films", "told"}),
        ("a run GOES ON; hold_out", {"goes on", "hold out"}),
        ("profile, filmed, steps", set()),
    ],
)
def test_found_splits_identifiers(text: str, words: set[str]) -> None:
    assert found(text) == words


def test_tracked_texts_use_the_fields_words() -> None:
    left = {}
    for name, text in tracked_texts():
        allowed = ALLOWED.get(name, {})
        if "*" not in allowed and (words := found(text) - allowed.keys()):
            left[name] = {w: (WORDS | PHRASES)[w] for w in sorted(words)}
    assert not left


def test_no_function_or_class_has_a_former_name() -> None:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    for file in product_files():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, kinds):
                assert node.name not in NAMES, f"{file}:{node.lineno}: {NAMES[node.name]}"


def test_allowed_words_are_still_there() -> None:
    for name, words in ALLOWED.items():
        text = Path(ROOT / name).read_text(encoding="utf-8")
        assert set(words) - {"*"} <= found(text), name
