#!/usr/bin/env bash
# Run `lgjax train` on this machine and, where it ends early, go on with it a bounded number of times.
#
#   launch/restart.sh TIMES --config configs/stage2.py --out /mnt/runs/stage2 [any option of lgjax train]
#
# Every worker of a run is started like this. A worker that dies makes the others end too, and all come back
# here and go on from the newest checkpoint. Asked to stop (SIGTERM, a preemption notice), the run saves, ends
# with status 143 and is not started again; nor is one that fails before it has begun (status 2). LGJAX_PAUSE:
# seconds between two attempts (70), in which all workers of a run must have ended: more than --silence.
set -u
# jax takes three quarters of a GPU unless told otherwise; `lgjax plan` counts on this much
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}

if (( $# < 2 )) || ! [[ $1 =~ ^[0-9]+$ ]]; then
  echo "usage: launch/restart.sh TIMES --config FILE --out FOLDER [options of lgjax train]" >&2
  exit 2
fi
times=$1
shift
out=
for (( i = 1; i <= $#; i++ )); do
  case ${!i} in
    --out) next=$(( i + 1 )) && out=${!next-} ;;
    --out=*) out=${!i#--out=} ;;
  esac
done
if [[ -z $out ]]; then
  echo "restart.sh: name the folder of the run by --out; all workers must see it" >&2
  exit 2
fi

asked=
child=
tell() { [[ -z $asked || -z $child ]] || kill -TERM "$child" 2>/dev/null; }
trap 'asked=1; tell' TERM INT

for (( attempt = 0; ; attempt++ )); do
  resume=()
  [[ -f $out/config.json ]] && resume=(--resume)
  ${LGJAX:-lgjax} train "$@" "${resume[@]}" &
  child=$!
  tell # if it was asked before it had a name
  wait "$child"
  status=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ends `wait` before the run has saved
    wait "$child"
    status=$?
  done
  child=
  case $status in
    0 | 2) exit "$status" ;; # finished, or wrong options
    143) echo "restart.sh: the run was asked to stop" >&2 && exit 143 ;;
  esac
  if (( status == 1 )) && [[ -z $asked && ! -f $out/config.json ]]; then
    echo "restart.sh: the run failed before it had begun, and is not started again" >&2
    exit 2
  fi
  if [[ -n $asked ]] || (( attempt >= times )); then
    echo "restart.sh: the run ended with status $status after $attempt restarts" >&2
    exit "$status"
  fi
  echo "restart.sh: the run ended with status $status; restart $(( attempt + 1 )) of $times" >&2
  sleep "${LGJAX_PAUSE:-70}" &
  child=$!
  tell
  wait "$child"
  child=
  if [[ -n $asked ]]; then
    echo "restart.sh: asked to stop between two attempts" >&2
    exit 143
  fi
done
