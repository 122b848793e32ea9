"""PyTorch's attention, in a process of its own: one JSON request a line, one JSON answer each.

    {"B": 128, "H": 12, "T": 128, "D": 64, "causal": false, "direction": "forward"|"backward", "backend": "flash"|"cudnn"|
     "efficient"|"math"|"flex", "n": 0, "dropout": 0.0, "deterministic": false, "seconds": 0.2, "samples": 5}
    {"seconds": [of one call, in each sample], "repeats": calls in a sample, "recorded": whether as a CUDA graph} or {"error": TEXT}

As in tests/bench/bench_ops.cpp: bf16, many calls in a row between two synchronisations, recorded as a CUDA graph where that
works, with sets of tensors that take turns so that none is in the cache. The first argument is the device, cpu or cuda.
FlexAttention has softmax1 by its own means: the output times sigmoid(log-sum-exp).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import Callable

CACHE_BYTES, MOST_COPIES, MOST_REPEATS, SAMPLE_SECONDS = 128 << 20, 32, 1024, 10e-3


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    device = sys.argv[1]
    import torch
    import torch.nn.functional as functional
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
                "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH}
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    side = torch.cuda.Stream() if device == "cuda" else None
    flex: dict[tuple, Callable] = {}

    def flex_softmax1(T: int, causal: bool) -> Callable:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
        if (T, causal) not in flex:
            mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, T, T, device=device) if causal else None

            def attend(q, k, v):
                out, lse = flex_attention(q, k, v, block_mask=mask, return_lse=True)
                return out * torch.sigmoid(lse).unsqueeze(-1).to(out.dtype)
            flex[T, causal] = torch.compile(attend, dynamic=False)
        return flex[T, causal]

    def call_of(request: dict) -> Callable[[], object]:
        """One call with tensors of its own: heads of a packed (B, T, 3, H, D) projection, as models have them."""
        B, H, T, D = (request[name] for name in "BHTD")
        packed = torch.randn(B, T, 3, H, D, device=device, dtype=torch.bfloat16)
        q, k, v = (packed[:, :, which].transpose(1, 2).detach() for which in range(3))
        backward = request["direction"] == "backward"
        if backward:
            q, k, v = (tensor.requires_grad_() for tensor in (q, k, v))
        if request["backend"] == "flex":
            attend = flex_softmax1(T, request["causal"])
        else:
            def attend(q, k, v):
                with sdpa_kernel(backends[request["backend"]]):
                    return functional.scaled_dot_product_attention(q, k, v, dropout_p=request["dropout"], is_causal=request["causal"])
        if not backward:
            return lambda: attend(q, k, v)
        out = attend(q, k, v)
        d_out = torch.randn_like(out)
        return lambda: torch.autograd.grad(out, (q, k, v), d_out, retain_graph=True)

    def recorded(work: Callable[[], None]) -> Callable[[], None] | None:
        """The same work as one CUDA graph; None where it cannot be recorded."""
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=side):
                work()
            return graph.replay
        except Exception:
            torch.cuda.synchronize()
            return None

    def measure(request: dict) -> dict:
        torch.use_deterministic_algorithms(request["deterministic"])
        bytes_of_a_set = 2 * request["B"] * request["T"] * request["H"] * request["D"] * (4 if request["direction"] == "forward" else 8)
        copies = max(1, min(MOST_COPIES, CACHE_BYTES // bytes_of_a_set + 1))
        with torch.cuda.stream(side) if side else contextlib.nullcontext():  # where it will be recorded
            calls = [call_of(request) for _ in range(copies)]
            for call in calls:
                call()
            synchronize()
            begin = time.perf_counter()
            for call in calls:
                call()
            synchronize()
        one = max((time.perf_counter() - begin) / copies, 1e-7)
        turns = min(max(int(min(SAMPLE_SECONDS, request["seconds"]) / one / copies), 1), max(MOST_REPEATS // copies, 1))

        def work() -> None:
            for _ in range(turns):
                for call in calls:
                    call()
        graph = recorded(work) if device == "cuda" else None
        run = graph or work
        for _ in range(2):
            run()
        synchronize()
        seconds: list[float] = []
        while len(seconds) < request["samples"] or sum(seconds) * turns * copies < request["seconds"]:
            begin = time.perf_counter()
            run()
            synchronize()
            seconds.append((time.perf_counter() - begin) / (turns * copies))
        return {"seconds": seconds, "repeats": turns * copies, "recorded": graph is not None}

    for line in sys.stdin:
        try:
            answer = measure(json.loads(line))
        except Exception as error:  # told to who asked: one backend that does not take a shape is not the end of a benchmark
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
