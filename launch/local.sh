#!/usr/bin/env bash
# Several processes of `lgjax train` on this machine's CPU, to try what a pod does.
#
#   launch/local.sh PROCESSES DEVICES_EACH --config configs/sixteen_scenes.py --out runs/local [options]
#
# Each process shows DEVICES_EACH devices. Output of process N goes to OUT-N.txt. LGJAX_RESTARTS: how often
# each is started again where one has died (3); LGJAX_PORT: where the first one listens (12321).
set -u

if (( $# < 3 )) || ! [[ $1 =~ ^[1-9][0-9]*$ && $2 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/local.sh PROCESSES DEVICES_EACH --config FILE --out FOLDER [options of lgjax train]" >&2
  exit 2
fi
processes=$1 devices=$2
shift 2
out=runs/local
for (( i = 1; i <= $#; i++ )); do
  case ${!i} in
    --out) next=$(( i + 1 )) && out=${!next-} ;;
    --out=*) out=${!i#--out=} ;;
  esac
done
here=$(dirname "$0")
mkdir -p "$(dirname "$out")"
export JAX_PLATFORMS=cpu
export XLA_FLAGS="--xla_force_host_platform_device_count=$devices ${XLA_FLAGS-}"

workers=()
trap 'kill -TERM "${workers[@]}" 2>/dev/null' TERM INT
for (( number = 0; number < processes; number++ )); do
  "$here/restart.sh" "${LGJAX_RESTARTS:-3}" "$@" --coordinator "127.0.0.1:${LGJAX_PORT:-12321}" \
    --processes "$processes" --process "$number" > "$out-$number.txt" 2>&1 &
  workers+=("$!")
done
status=0
for worker in "${workers[@]}"; do
  wait "$worker"
  ended=$?
  while kill -0 "$worker" 2>/dev/null; do
    wait "$worker"
    ended=$?
  done
  (( ended > status )) && status=$ended
done
exit "$status"
