"""The batch scripts of folds and of their summary."""

from __future__ import annotations

import hashlib
import inspect
import os
import shlex
from pathlib import Path

import pytest
from submitit.core.utils import JobPaths
from submitit.slurm import slurm as submitit_slurm

from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from launch.slurm.batch import (
    ArrayTask,
    ClusterTarget,
    make_executor,
    make_summary_executor,
    script_text,
    submitting,
)
from launch.slurm.cluster import load_cluster

# what launch/slurm/batch.py relies on, as read in Submitit 1.5.4
SUBMITIT = {
    "_make_submission_file_text": "fa1ff3ec44d9876c",
    "_submitit_command_str": "c04e7f4c24c124de",
    "_internal_process_submissions": "cd71325592178efb",
}
# what launch/submitit_paths.py replaces
PATHS = {"_format_id": "bc2164f58df35a66", "get_first_id_independent_folder": "6990930635556fef"}
# as read in Submitit 1.5.3 and 1.5.4
MAKE_SBATCH_STRING = ("8548e9f62535499e", "e953875758921406")


def sha256(function: object) -> str:
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SUBMITIT)
def test_private_function_of_submitit_is_unchanged(name: str) -> None:
    function = inspect.getattr_static(submitit_slurm.SlurmExecutor, name)
    function = function.fget if isinstance(function, property) else function
    assert sha256(function) == SUBMITIT[name], "read it again, and launch/slurm/batch.py"


@pytest.mark.parametrize("name", PATHS)
def test_replaced_function_of_submitit_is_unchanged(name: str) -> None:
    assert sha256(getattr(JobPaths, name)) == PATHS[name], "read it again, and submitit_paths.py"


def test_script_text_of_submitit_is_unchanged() -> None:
    found = sha256(submitit_slurm._make_sbatch_string)
    assert found in MAKE_SBATCH_STRING, "read it again, and launch/slurm/batch.py"


@pytest.fixture(autouse=True)
def srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Submitit only looks whether there is one."""
    (tmp_path / "srun").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    # replaced for some folders
    monkeypatch.setattr(JobPaths, "_format_id", JobPaths._format_id)
    original = JobPaths.get_first_id_independent_folder
    monkeypatch.setattr(JobPaths, "get_first_id_independent_folder", staticmethod(original))


def script(folder: Path, *overrides: str, summary: bool = False, folds: int = 2) -> list[str]:
    """Return the lines of a batch script on the cluster gpus8."""
    cluster = load_cluster("gpus8", [f"cluster.{text}" for text in overrides])
    target = ClusterTarget("gpus8", cluster, None)
    run = RunDir(folder / "runs" / "my run")
    if summary:
        executor = make_summary_executor(target, folder, run.code, "120")
        return script_text(executor, 1).splitlines()
    tasks = [ArrayTask(run, k) for k in range(1, folds + 1)]
    return script_text(make_executor(tasks, target, folder), folds).splitlines()


def options(lines: list[str]) -> set[str]:
    return {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}


def test_folds_are_an_array_that_sources_job_sh(tmp_path: Path) -> None:
    lines = script(tmp_path, "setup=[module load cuda]", "environment.A=b c")
    assert options(lines) >= {
        "--array=0-1%2",
        "--gpus-per-node=8",
        "--mem=245760MB",
        "--nodes=2",
        "--ntasks-per-node=8",
        "--requeue",
        "--signal=USR2@120",
        "--time=1440",
    }
    setup = lines[lines.index("# setup") + 1 : lines.index("# command")]
    root = tmp_path / "runs" / "my run"
    assert setup[:6] == [
        "module load cuda",
        'export A="b c"',
        f"runs=('{root}' '{root}')",
        "folds=(1 2)",
        "task=${SLURM_ARRAY_TASK_ID:-0}",
        "run=${runs[task]} fold=${folds[task]}",
    ]
    assert setup[6].endswith("max_requeues=30")
    assert setup[7] == 'source "$run/code/launch/slurm/job.sh" || exit'
    srun = next(line for line in lines if line.startswith("srun "))
    assert {"--kill-on-bad-exit=1", "--cpus-per-task=8", "--export=ALL"} <= set(srun.split())


def test_one_fold_is_a_plain_job(tmp_path: Path) -> None:
    assert not any("--array" in option for option in options(script(tmp_path, folds=1)))


def test_further_options_are_passed_on(tmp_path: Path) -> None:
    lines = script(tmp_path, 'sbatch={gres: "gpu:a100:8", exclude: "n3"}', "sbatch.exclusive=true")
    found = options(lines)
    assert found >= {"--gres=gpu:a100:8", "--exclude=n3", "--exclusive", "--ntasks-per-node=8"}
    assert not any(option.startswith("--gpus-per-node") for option in found)


@pytest.mark.parametrize(
    ("setting", "option"),
    [
        ("partition=low,high", "--partition=low,high"),
        ("constraint=a100&nvlink", "--constraint='a100&nvlink'"),
        ("memory_gb=0", "--mem=0MB"),
        ("sbatch.nodelist=n[1-3]", "--nodelist='n[1-3]'"),
        ("sbatch.reservation=x", "--reservation=x"),
        ("sbatch.gres=gpu:a100:8,nvme:1", "--gres=gpu:a100:8,nvme:1"),
        ("sbatch.licenses=fluent@db:2", "--licenses=fluent@db:2"),
        ("sbatch.mail_user=me@lab.org", "--mail-user=me@lab.org"),
        ("sbatch.comment=it's mine", "--comment='it'\"'\"'s mine'"),
        ("sbatch.switches=1@12:00", "--switches=1@12:00"),
        ("sbatch.no-kill=true", "--no-kill"),
    ],
)
def test_value_reaches_sbatch_as_it_is(tmp_path: Path, setting: str, option: str) -> None:
    assert option in options(script(tmp_path, setting))


def test_option_can_be_switched_off_again(tmp_path: Path) -> None:
    found = options(script(tmp_path, "sbatch.gres=gpu:8", "sbatch.gres=null"))
    assert "--gpus-per-node=8" in found and not any("gres" in option for option in found)


def test_summary_is_one_process_after_the_folds(tmp_path: Path) -> None:
    lines = script(tmp_path, "constraint=a100", "sbatch.gres=gpu:8", "setup=[x]", summary=True)
    found = options(lines)
    assert found >= {
        "--constraint=a100",
        "--cpus-per-task=1",
        "--dependency=afterany:120",
        "--mem=4096MB",
        "--nodes=1",
        "--partition=gpu",
        "--time=30",
    }
    assert not any("gres" in option or "gpus" in option for option in found)
    assert "x" in lines and any(line.startswith("export PYTHONPATH=") for line in lines)


def test_summary_has_options_of_its_own(tmp_path: Path) -> None:
    summary = "summary={partition: cpu, constraint: null, time: 60, mem: null}"
    found = options(script(tmp_path, "constraint=a100", summary, summary=True))
    assert {"--partition=cpu", "--time=60"} <= found
    assert not any(option.startswith(("--constraint", "--mem")) for option in found)
    assert "--partition=gpu" in options(script(tmp_path, summary))


def test_without_srun_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "srun").unlink()
    with pytest.raises(UserError, match="no srun on PATH"):
        script(tmp_path)


def test_variables_of_the_environment_are_the_shells(tmp_path: Path) -> None:
    """Only variables are replaced: quotes, commands, backslashes and prices stay as they are."""
    environment = (
        r"""environment={A: "${HOME}/$USER x", B: 'say "hi" `now` $(now) 5$', C: 'a\$b\c'}"""
    )
    lines = script(tmp_path, environment)
    scratch = "scratch=${SLURM_TMPDIR:-/tmp}/x"
    assert 'export DFER_SCRATCH="${SLURM_TMPDIR:-/tmp}/x"' in script(tmp_path, scratch)
    assert 'export A="${HOME}/$USER x"' in lines
    assert r'export B="say \"hi\" \`now\` \$(now) 5\$"' in lines
    assert r'export C="a\$b\\c"' in lines


@pytest.mark.parametrize("summary", [False, True])
def test_no_workload_key_is_sent_unless_asked_for(tmp_path: Path, summary: bool) -> None:
    assert not any("wckey" in o for o in options(script(tmp_path, summary=summary)))
    section = "summary" if summary else "sbatch"
    assert "--wckey=mine" in options(script(tmp_path, f"{section}.wckey=mine", summary=summary))


@pytest.mark.parametrize("name", ["try_50%x", "100%", "it's 5% more"])
def test_per_cent_sign_of_the_folder_is_escaped(tmp_path: Path, name: str) -> None:
    """Slurm would replace %x by the job's name; ``%%`` is its per cent sign."""
    folder = tmp_path / name
    escaped = str(folder).replace("%", "%%")
    for lines, job in (
        (script(folder, folds=2), "%A_%a"),
        (script(folder, folds=1), "%j"),
        (script(folder, summary=True), "%j"),
    ):
        (output,) = (o for o in options(lines) if o.startswith("--output="))
        assert shlex.split(output) == [f"--output={escaped}/{job}_0_log.out"]
        srun = shlex.split(next(line for line in lines if line.startswith("srun ")))
        # the last one counts
        outputs = [word for word in srun if word.startswith("--output=")]
        assert outputs == [f"--output={escaped}/{job}_%t_log.out"]


@pytest.mark.parametrize("name", ["100%job", "a%t", "%Alpha", "50%accurate", "%%j %a"])
@pytest.mark.parametrize("folds", [1, 2])
def test_submitit_keeps_the_name_of_the_folder(tmp_path: Path, name: str, folds: int) -> None:
    """It would replace these tags; jobs find their functions in the same folder."""
    folder = tmp_path / name / "1"
    lines = script(folder, folds=folds)
    (output,) = (o for o in options(lines) if o.startswith("--output="))
    assert str(folder).replace("%", "%%") + "/" in output
    srun = shlex.split(next(line for line in lines if line.startswith("srun ")))
    assert srun[-2:] == ["launch.submitit_paths", str(folder)]
    tags = {"job_id": "7_0"[: 2 * folds - 1], "task_id": 3}
    assert JobPaths(folder, **tags).submission_file == folder / "7_submission.sh"
    assert JobPaths(folder, **tags).result_pickle == folder / f"{tags['job_id']}_3_result.pkl"
    assert JobPaths.get_first_id_independent_folder(folder) == folder


def test_variables_of_other_jobs_and_options_are_not_inherited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What jobs get of the shell that submits; it has all again afterwards."""
    foreign = {
        *("SBATCH_PARTITION", "SBATCH_EXPORT", "SLURM_JOB_ID", "SLURM_MEM_PER_CPU"),
        *("SBATCH_REQUEUE", "SLURM_NTASKS", "SLURM_CPU_BIND", "SLURM_HINT", "SCANCEL_STATE"),
        *("SRUN_CPUS_PER_TASK", "SLURM_CLUSTERS", "SLURM_PARTITION", "SLURM_TRES_PER_TASK"),
        *("SLURM_TIME_FORMAT", "SRUN_EXPORT_ENV", "SLURMD_NODENAME", "PMI_RANK"),
        *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK"),
        # by which DeepSpeed's ranks take shared memory, of one node
        "LOCAL_SIZE",
        *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"),
        *("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"),
        # of salloc, and of mpirun
        *("SALLOC_ACCOUNT", "SLURM_TMPDIR", "OMPI_COMM_WORLD_RANK", "PMIX_RANK"),
    }
    own = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "PYTHONPATH")
    own += ("SLURMISH", "MY_RANK", "MASTER_ADDRESS")
    for name in (*foreign, *own):
        monkeypatch.setenv(name, "1")
    with submitting():
        assert not foreign & os.environ.keys()
        assert all(os.environ[name] == "1" for name in own)
    assert all(os.environ[name] == "1" for name in foreign)
