# Sourced by the batch script of an element, Submitit's or slurm/crossval.sbatch: all that stands around the `srun` of its ranks.
# It finds in shell variables: the run's folder, the fold, the interpreter, and the most restarts (run, fold, python, most).

export PYTHONPATH=$run/code${PYTHONPATH:+:$PYTHONPATH} # what was submitted, not what the checkout has become
fold_folder=$run/fold-$fold
mkdir -p "$fold_folder" && exec {lock}>>"$fold_folder/.lock" || exit 2
flock --timeout 120 "$lock" || { echo "error: another job is working on $fold_folder" >&2; exit 2; }

leave() { # the one place where a job goes back into the queue
  local status=$1
  "$python" -P -m launch.slurm.job close "$run" "$fold" "$status" || status=$?
  "$python" -P -m launch.slurm.requeue "$status" "$fold_folder" --most "$most"
  exit "$status"
}
trap 'leave $?' EXIT
trap : TERM USR2 # they are for the ranks; this shell has to see how those end

# Slurm sets it from 23.02 on; ranks save and leave before
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
SLURM_JOB_END_TIME=$(squeue --noheader --format %e --jobs "${job:-$SLURM_JOB_ID}" | date --file - +%s 2>/dev/null)
export SLURM_JOB_END_TIME
