#!/bin/sh
# Train the small model of the package from nothing: about four hours on two cores (by the times of its stages).
#
#   launch/tiny.sh            from the folder that holds configs/; writes runs/tiny and lgjax/assets/tiny
#
# Two stages at a time, each on a core: what tells (tower, lists, chat) beside what finds (names, eyes), then what
# reads what is pointed at (prompts, talk) beside what finds, again (polish).
# Run it again after an interruption: what is done is not done again, and `lgjax train` goes on where it was.
set -eu

out=runs/tiny
mkdir -p "$out"

on_core() {
  core=$1
  shift
  if command -v taskset >/dev/null; then taskset -c "$core" "$@"; else "$@"; fi
}

stage() {
  core=$1 run=$out/$2
  [ -d "$run/model" ] && return
  resume=
  [ -d "$run/checkpoints" ] && resume=--resume
  on_core "$core" lgjax train --config "configs/tiny_$2.py" --out "$run" $resume >>"$run.txt" 2>&1
}

words() {
  stage 0 tower || return
  if [ ! -d "$out/text_start" ]; then
    on_core 0 python launch/tiny_text_start.py "$out/tower/model" "$out/text_start" || return
  fi
  if [ ! -d "$out/lists" ]; then
    on_core 0 python launch/tiny_lists.py "$out/text_start" "$out/lists" >"$out/lists.txt" || return
  fi
  stage 0 chat
}

places() {
  stage 1 names && stage 1 eyes
}

pointed() {
  stage 1 prompts && stage 1 talk
}

again() {
  stage 0 polish
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
together pointed again
python launch/tiny_join.py "$out/polish/model" "$out/talk/model" lgjax/assets/tiny
