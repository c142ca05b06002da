#!/usr/bin/env bash
# Train on GPU nodes of a SLURM cluster: one task a GPU, found by each other through SLURM.
#
#   sbatch --nodes 2 launch/slurm.sh --config configs/stage2.py --out /shared/runs/stage2 [options]
#
# Near the time limit, and when the job is preempted, the run saves; it is then queued again and goes on, as
# often as LGJAX_RESTARTS says (20). So is a run of which a worker or node died.
#SBATCH --job-name=lgjax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=lgjax-%j.txt
set -u

if (( $# == 0 )); then
  echo "usage: sbatch [--nodes N] launch/slurm.sh --config FILE --out FOLDER [options of lgjax train]" >&2
  exit 2
fi
before=${SLURM_RESTART_COUNT:-0}
srun --kill-on-bad-exit=1 launch/restart.sh 0 "$@" --distributed
status=$?
case $status in
  0 | 2) exit "$status" ;; # finished, or wrong options
esac
if (( before >= ${LGJAX_RESTARTS:-20} )); then
  echo "slurm.sh: the run ended with status $status after $before restarts" >&2
  exit "$status"
fi
echo "slurm.sh: the run ended with status $status; queued again, restart $(( before + 1 ))" >&2
scontrol requeue "$SLURM_JOB_ID"
