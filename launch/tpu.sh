#!/usr/bin/env bash
# Train on a TPU pod from your own computer: create it, copy this repository, run on all workers, follow.
#
#   launch/tpu.sh all --zone us-west4-a --type v5litepod-16 -- --config configs/stage2.py --out /mnt/runs/stage2
#
# The verbs of `all` also stand alone, and `delete` ends the pod (and its cost):
#   create   ask for the pod and wait until it is there
#   copy     this repository as committed, and what it needs, to every worker
#   run      `lgjax train` on every worker, with what stands behind `--`; goes on where --out holds a run
#   tail     follow the first worker's output; Ctrl-C ends the following alone
#   stop     ask the run to save and end
#   status   what the pod is doing
#   delete   give the pod back
#
# Options: --name NAME (lgjax)   --zone ZONE   --type ACCELERATOR, such as v5litepod-16 or v5p-32
#   --slices N (1): several pods that train together   --runtime VERSION (by the type)
#   --spot: cheaper, may be taken away   --restarts N (3): how often the run is started again by itself
#   --setup COMMAND: run on every worker after copying, for example to mount where data and runs are
#   --dry-run: print what would be done, do nothing
set -euo pipefail

usage() {
  sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

name=lgjax zone='' type='' slices=1 runtime='' spot='' restarts=3 setup=true dry=''
verb=${1-}
[[ -n $verb && $verb != --help && $verb != -h ]] || usage
shift
while (( $# )); do
  case $1 in
    --name | --zone | --type | --slices | --runtime | --restarts | --setup)
      (( $# > 1 )) || { echo "tpu.sh: $1 needs a value" >&2 && exit 2; }
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --spot) spot=1 && shift ;;
    --dry-run) dry=1 && shift ;;
    --) shift && break ;;
    *) echo "tpu.sh: unknown option '$1'" >&2 && exit 2 ;;
  esac
done
train=("$@")
[[ -n $zone ]] || { echo "tpu.sh: give the zone of the pod by --zone, such as us-west4-a" >&2 && exit 2; }
[[ $restarts =~ ^[0-9]+$ ]] || { echo "tpu.sh: --restarts $restarts must be a number" >&2 && exit 2; }
[[ $slices =~ ^[1-9][0-9]*$ ]] || { echo "tpu.sh: --slices $slices must be 1 or more" >&2 && exit 2; }

say() { echo "tpu.sh: $*" >&2; }

call() { # print a command, and run it unless this is a dry run
  local words
  words=$(printf ' %q' "$@")
  printf '+%s\n' "$words" >&2 # in one piece: several slices speak at once
  [[ -n $dry ]] || "$@"
}

nodes() {
  if (( slices == 1 )); then
    echo "$name"
  else
    seq -f "$name-%g" 0 $(( slices - 1 ))
  fi
}

on_all() { # run one command on every worker of every slice at once
  local node waiting=() failed=0
  for node in $(nodes); do
    call gcloud compute tpus tpu-vm ssh "$node" --zone "$zone" --worker=all --command="$1" &
    waiting+=("$!")
  done
  for node in "${waiting[@]}"; do wait "$node" || failed=1; done
  return "$failed"
}

create() {
  local version=$runtime how
  [[ -n $type ]] || { echo "tpu.sh: give the pod's kind by --type, such as v5litepod-16" >&2 && exit 2; }
  if [[ -z $version ]]; then
    case $type in
      v4-*) version=tpu-ubuntu2204-base ;;
      v5litepod-*) version=v2-alpha-tpuv5-lite ;;
      v5p-*) version=v2-alpha-tpuv5 ;;
      v6e-*) version=v2-alpha-tpuv6e ;;
      *) echo "tpu.sh: name the software of a $type by --runtime" >&2 && exit 2 ;;
    esac
  fi
  how=(--node-id "$name")
  (( slices == 1 )) || how=(--node-count "$slices" --node-prefix "$name")
  [[ -z $spot ]] || how+=(--spot)
  call gcloud compute tpus queued-resources create "$name" --zone "$zone" --accelerator-type "$type" \
    --runtime-version "$version" "${how[@]}"
  [[ -z $dry ]] || return 0
  until [[ $(state) == ACTIVE ]]; do
    case $(state) in
      FAILED | SUSPENDED) say "the pod was not given; see: launch/tpu.sh status" && exit 1 ;;
    esac
    say "waiting for the pod: $(state)"
    sleep 30
  done
}

state() {
  gcloud compute tpus queued-resources describe "$name" --zone "$zone" --format='value(state.state)'
}

copy() {
  local archive node root
  root=$(cd "$(dirname "$0")/.." && pwd)
  archive=${TMPDIR:-/tmp}/lgjax-$$.tar.gz
  call git -C "$root" archive --format=tar.gz -o "$archive" HEAD
  for node in $(nodes); do
    call gcloud compute tpus tpu-vm scp "$archive" "$node:lgjax.tar.gz" --zone "$zone" --worker=all
  done
  # the images bring Python 3.10; uv gets a newer one without touching it
  on_all "set -e; rm -rf lgjax; mkdir lgjax; tar -xzf lgjax.tar.gz -C lgjax; python3 -m pip install -q --user uv; \
python3 -m uv venv -q --allow-existing --python 3.11 lgjax-env; \
python3 -m uv pip install -q --python lgjax-env/bin/python './lgjax[train,tpu,gcs]'; $setup"
}

options() { # stop where those of lgjax train are missing
  (( ${#train[@]} )) || { echo "tpu.sh: give the options of lgjax train behind --" >&2 && exit 2; }
  [[ " ${train[*]}" == *" --out"[\ =]* ]] || { echo "tpu.sh: name the run's folder by --out" >&2 && exit 2; }
}

run() {
  local quoted
  options
  quoted=$(printf ' %q' "${train[@]}" --distributed)
  on_all "cd lgjax || exit; LGJAX=\$HOME/lgjax-env/bin/lgjax nohup setsid launch/restart.sh $restarts$quoted \
> \$HOME/lgjax.txt 2>&1 < /dev/null & sleep 2; echo started on \$(hostname)"
}

follow() {
  local first
  first=$(nodes | head -n 1)
  call gcloud compute tpus tpu-vm ssh "$first" --zone "$zone" --worker=0 --command='tail -n 100 -F lgjax.txt' || true
}

case $verb in
  create) create ;;
  copy) copy ;;
  run) run ;;
  tail) follow ;;
  stop) on_all "pkill -TERM -f '[l]aunch/restart.sh' || true" ;;
  status) call gcloud compute tpus queued-resources describe "$name" --zone "$zone" ;;
  delete) call gcloud compute tpus queued-resources delete "$name" --zone "$zone" --force --quiet ;;
  all)
    options
    create
    copy
    run
    follow
    say "the pod costs money until: launch/tpu.sh delete --name $name --zone $zone"
    ;;
  *) echo "tpu.sh: unknown verb '$verb'" >&2 && usage ;;
esac
