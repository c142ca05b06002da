"""From nothing to sixteen composed scenes by heart: the quickest way to see that training works.

2.1 million parameters, language and grounding at once. Grounding sends no gradient into the language model:
fresh phrase embeddings would drown what the text teaches it (`--loss.no-detach-seg` shows it). Expected:
grounded F1 (box IoU 0.5, right name, greedy answers) of at least 0.95 on the sixteen scenes; see
tests/train/test_learning.py.
"""

from lgjax.config import (
    ClipConfig,
    GroundingConfig,
    LlamaConfig,
    ModelConfig,
    SwinConfig,
    TransformerConfig,
)
from lgjax.train.config import DataConfig, DataStream, LossConfig, OptimConfig, Rates, TrainConfig


def get_config() -> TrainConfig:
    model = ModelConfig(
        clip=ClipConfig(image_size=64, patch_size=8, hidden_size=96, mlp_size=192, num_layers=3, num_heads=4),
        llama=LlamaConfig(
            vocab_size=803,
            hidden_size=128,
            mlp_size=256,
            num_layers=3,
            num_heads=4,
            num_kv_heads=4,
            head_dim=32,
        ),
        grounding=GroundingConfig(
            swin=SwinConfig(embed_dim=24, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), window=4),
            transformer=TransformerConfig(
                hidden_size=64, ffn_size=128, num_heads=4, encoder_layers=2, decoder_layers=3, norm_groups=8
            ),
            image_size=128,
            num_queries=30,
        ),
        prompt=None,
        seg_state="at",
    )
    return TrainConfig(
        name="sixteen_scenes",
        model=model,
        data=DataConfig(
            grounded=(DataStream(sorts=("description",), count=16),),
            grounded_rows=8,
            length=192,
            phrases=8,
            objects=12,
            mask_side=64,
        ),
        loss=LossConfig(queries=30, points=512, drop_path=False, detach_seg=True),
        optim=OptimConfig(
            lr=1e-3,
            b2=0.99,
            rates=Rates(clip=1, projector=1, embed=1, head=1, llama=1, grounding=1, slow=1),
        ),
        steps=800,
        log_every=20,
        save_every=200,
        draw_every=400,
    )
