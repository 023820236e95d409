# Sourced by the batch script of a fold, Submitit's or slurm/crossval.sbatch: everything around the
# `srun` of its ranks. It reads the shell variables run (the run's folder), fold, python (the
# interpreter) and max_requeues.

# Ranks ignore SIGTERM until they handle it. When one fails, srun sends it to the others, which then
# still come to their own end: whether all have the same error decides what becomes of the fold.
rank_command='trap "" TERM; exec "$@"'

# the code that was submitted, whatever has become of the checkout
export PYTHONPATH=$run/code${PYTHONPATH:+:$PYTHONPATH}

# no two jobs train a fold at the same time
fold_folder=$run/fold-$fold
mkdir -p "$fold_folder" && exec {lock}>>"$fold_folder/.lock" || exit 2
flock --timeout 120 "$lock" || { echo "error: another job is training $fold_folder" >&2; exit 2; }

# where the lines of this start begin in the job's output, those of its tasks and the ranks' logs
output=$(readlink "/proc/$$/fd/2")
{ date +%s; stat --format '%s %n' "$output" "${output%_0_log.out}"_*_log.out "$fold_folder"/log*.txt; } \
  >"$fold_folder/.start" 2>/dev/null

# the only place where a job is requeued
close_and_requeue() {
  local status=$1 closed=0
  "$python" -P -m launch.slurm.job close "$run" "$fold" "$status" --most "$max_requeues" || closed=$?
  # a summary that failed is the job's failure only if the ranks did not fail
  [ "$status" = 0 ] && status=$closed
  "$python" -P -m launch.slurm.requeue "$status" "$fold_folder" --most "$max_requeues"
  exit "$status"
}
trap 'close_and_requeue $?' EXIT
# these signals are for the ranks; this shell has to see how they end
trap : TERM USR2

# ranks save before this time; Slurm sets it from 23.02 on
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
unset "${!SQUEUE_@}"
SLURM_JOB_END_TIME=$(SLURM_TIME_FORMAT=standard squeue --noheader --format %e --jobs "${job:-$SLURM_JOB_ID}" | date --file - +%s 2>/dev/null)
export SLURM_JOB_END_TIME
