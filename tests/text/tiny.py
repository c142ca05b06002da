"""The tokenizer of the text tests: the 800-piece stand-in of the parity data, always the repository's own."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from lgjax.text.tokenizer import Tokenizer

MODEL = Path(__file__).parents[1] / "parity" / "data" / "llm_tiny_spm.model"
TOKENIZER = Tokenizer.from_model_file(MODEL)

ordinary_ids = st.integers(3, TOKENIZER.vocab_size - 4)
grounding_ids = st.sampled_from([TOKENIZER.g_s_id, TOKENIZER.g_e_id, TOKENIZER.seg_id])
special_ids = st.sampled_from([TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.unk_id])
# the pieces that spell "</s>", as one character or more, and as bytes
STOP_PIECES = [
    i
    for i in range(TOKENIZER.unk_id + 3, TOKENIZER.vocab_size - 3)
    if (text := TOKENIZER.decode([TOKENIZER.seg_id, i]).removeprefix("<seg> ")) and text in "</s>"
]
stop_ids = st.sampled_from(STOP_PIECES)
