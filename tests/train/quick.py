"""Options of the compiler under which a training step compiles in a third of the time, and runs slower."""

OPTIONS = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
