"""Engine ``vllm``: models that vLLM runs, in a process of its own."""

NAME = "vllm"
