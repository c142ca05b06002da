#!/bin/sh
# Train the small model of the package from nothing: about seven hours on two cores (by the times of its stages).
#
#   launch/tiny.sh            from the folder that holds configs/; writes runs/tiny and lgjax/assets/tiny
#
# What tells (tower, lists, chat) on one core beside what finds (names, eyes, polish, finish) on the other, then what
# reads what is pointed at (prompts, talk), and what says all of it (say, more), on both.
# Run it again after an interruption: what is done is not done again, and `lgjax train` goes on where it was.
set -eu

out=runs/tiny
mkdir -p "$out"

on_cores() {
  cores=$1
  shift
  if command -v taskset >/dev/null; then taskset -c "$cores" "$@"; else "$@"; fi
}

stage() {
  cores=$1 run=$out/$2
  [ -d "$run/model" ] && return
  resume=
  [ -d "$run/checkpoints" ] && resume=--resume
  on_cores "$cores" lgjax train --config "configs/tiny_$2.py" --out "$run" $resume >>"$run.txt" 2>&1
}

words() {
  stage 0 tower || return
  if [ ! -d "$out/text_start" ]; then
    on_cores 0 python launch/tiny_text_start.py "$out/tower/model" "$out/text_start" || return
  fi
  if [ ! -d "$out/lists" ]; then
    on_cores 0 python launch/tiny_lists.py "$out/text_start" "$out/lists" >"$out/lists.txt" || return
  fi
  stage 0 chat
}

places() {
  stage 1 names && stage 1 eyes && stage 1 polish && stage 1 finish
}

together() {
  "$1" &
  first=$!
  "$2" &
  second=$!
  failed=
  wait "$first" || failed=yes
  wait "$second" || failed=yes
  [ -z "$failed" ]
}

[ -f configs/tiny_tokenizer.model ] || python launch/tiny_vocabulary.py configs/tiny_tokenizer.model
together words places
if [ ! -d "$out/prompt_start" ]; then
  python launch/tiny_prompt_start.py "$out/eyes/model" "$out/prompt_start"
fi
stage 0,1 prompts
stage 0,1 talk
stage 0,1 say
stage 0,1 more
python launch/tiny_join.py "$out/finish/model" "$out/more/model" lgjax/assets/tiny
