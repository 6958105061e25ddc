#!/usr/bin/env python3
"""Decoding passes of a model's shape under DeepSpeed ZeRO-3, as benchmarks/beside_deepspeed.py starts it:

    python -m torch.distributed.run --standalone --nproc-per-node N benchmarks/deepspeed_passes.py
        --model DIR --tier device|host --settings NAME[,NAME..] --batch N[,N..] --steps N --output FILE

Each rank has its own lanes, as many as --batch, and all weights are partitioned over the ranks: on their GPUs
(`device`) or in pinned memory (`host`, offload_param). Rank 0 appends a line of JSON to FILE for each setting and
batch, once it is measured and checked: the weights rest where they are said to rest, the values are finite, and all
ranks, which have the same prompts, have the same values. Weights are random, made on the GPU straight into the
partitions. Without a GPU it runs on CPUs, which tests it and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import time

import deepspeed
import torch
import torch.distributed as dist
import transformers
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import set_z3_leaf_modules
from transformers.initialization import no_init_weights

_PROMPT_TOKENS = 4
#: Decoding passes before those that are timed: DeepSpeed fetches ahead once it has recorded a pass.
_WARM_PASSES = 2

_LARGE = {
    "stage3_prefetch_bucket_size": 1_000_000_000,
    "stage3_max_live_parameters": 4_000_000_000,
    "stage3_max_reuse_distance": 4_000_000_000,
}  # fmt: skip
#: What is set beside stage 3, in elements; `blocks` also makes each block a leaf: fetched and released as a whole.
SETTINGS: dict[str, dict[str, int]] = {"default": {}, "prefetch": _LARGE, "blocks": _LARGE}


def config_of(setting: str, tier: str) -> dict:
    zero = {"stage": 3, **SETTINGS[setting]}
    if tier == "host":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_optimization": zero}


@torch.no_grad()
def fill(model: torch.nn.Module, device: torch.device) -> None:
    """Random matrices, norms that keep what they get, no biases: into this rank's partitions."""
    generator = torch.Generator(device).manual_seed(dist.get_rank())
    for name, parameter in model.named_parameters():
        values = torch.empty_like(parameter.ds_tensor, device=device)
        if len(parameter.ds_shape) > 1:
            values.normal_(0, 0.02, generator=generator)
        else:
            values.fill_(0 if name.endswith("bias") else 1)
        parameter.ds_tensor.copy_(values)
    get_accelerator().synchronize()  # gathers read the partitions on a stream of their own


def made(path: str, tier: str, device: torch.device) -> torch.nn.Module:
    config = transformers.AutoConfig.from_pretrained(path)
    with no_init_weights(), deepspeed.zero.Init(config_dict_or_path=config_of("default", tier)):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    fill(model, device)
    return model.eval()


def block_class(model: torch.nn.Module) -> type[torch.nn.Module]:
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    return type(max(lists, key=len)[0])


def partition_bytes(model: torch.nn.Module, tier: str) -> int:
    """Of this rank, checked: a part of each parameter, and where `tier` says."""
    world = dist.get_world_size()
    total = 0
    for name, parameter in model.named_parameters():
        part = parameter.ds_tensor
        if part.dtype != torch.bfloat16 or (part.numel() - 1) * world > parameter.ds_numel:
            raise RuntimeError(f"{name}: {part.numel()} elements of {part.dtype} are no part of {parameter.ds_shape}")
        if tier == "host" and (part.device.type != "cpu" or (torch.cuda.is_available() and not part.is_pinned())):
            raise RuntimeError(f"{name}: rests on {part.device}, not in pinned memory")
        if tier == "device" and part.device.type != get_accelerator().device_name():
            raise RuntimeError(f"{name}: rests on {part.device}, not on the accelerator")
        total += part.numel() * part.element_size()
    return total


def check_released(model: torch.nn.Module) -> None:
    """After a pass: whole parameters are gone, but for small ones, which DeepSpeed keeps."""
    parameters = list(model.parameters())
    kept = sum(p.ds_numel for p in parameters if not p.ds_persist and p.ds_status == ZeroParamStatus.AVAILABLE)
    if 2 * kept > sum(p.ds_numel for p in parameters):
        raise RuntimeError(f"after a pass {kept} elements are whole: this is no partition")


def check_values(logits: torch.Tensor) -> None:
    """Finite, and those of rank 0: a rank with other weights would say something else."""
    values = logits.float()
    if not torch.isfinite(values).all():
        raise RuntimeError("logits are not finite")
    first = values.clone()
    dist.broadcast(first, 0)
    if not torch.allclose(values, first, rtol=0, atol=0.1 * first.std().item()):
        raise RuntimeError(f"logits are not those of rank 0: {(values - first).abs().max().item()} apart")


@torch.no_grad()
def pass_seconds(model: torch.nn.Module, batch: int, steps: int, device: torch.device) -> list[float]:
    """Of `steps` greedy decoding passes, each with the device at rest before and after it."""
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(10, model.config.vocab_size, (batch, _PROMPT_TOKENS), generator=generator).to(device)
    out = model(input_ids=ids, use_cache=True)
    seconds = []
    for _ in range(_WARM_PASSES + steps):
        token = out.logits[:, -1:].argmax(-1)
        get_accelerator().synchronize()
        begin = time.perf_counter()
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        get_accelerator().synchronize()
        seconds.append(time.perf_counter() - begin)
    check_values(out.logits[:, -1])
    check_released(model)
    return seconds[_WARM_PASSES:]


def measure(model: torch.nn.Module, setting: str, options: argparse.Namespace, device: torch.device) -> None:
    if setting == "blocks":
        set_z3_leaf_modules(model, [block_class(model)])
    engine = deepspeed.initialize(model=model, config=config_of(setting, options.tier))[0]
    engine.eval()
    part = partition_bytes(model, options.tier)
    get_accelerator().reset_peak_memory_stats()
    for batch in options.batch:
        seconds = pass_seconds(engine.module, batch, options.steps, device)
        if dist.get_rank() == 0:
            line = {
                "setting": setting, "batch": batch, "world": dist.get_world_size(),
                "version": f"{deepspeed.__version__.strip()}, torch {torch.__version__}, "
                           f"transformers {transformers.__version__}",
                "pass_ms": statistics.median(seconds) * 1e3,
                "pass_ms_min": min(seconds) * 1e3, "pass_ms_max": max(seconds) * 1e3,
                "partition_bytes": part, "peak_device_bytes": get_accelerator().max_memory_allocated(),
            }  # fmt: skip
            with open(options.output, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    engine.empty_partition_cache()
    engine.destroy()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tier", choices=("device", "host"), required=True)
    parser.add_argument("--settings", type=lambda text: text.split(","), default=list(SETTINGS))
    parser.add_argument("--batch", type=lambda text: [int(part) for part in text.split(",")], default=[1])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--limit", type=int, default=0, help="seconds after which a rank ends itself; 0: none")
    parser.add_argument("--output", required=True)
    options = parser.parse_args()
    if unknown := set(options.settings) - set(SETTINGS):
        parser.error(f"--settings are of {', '.join(SETTINGS)}, not {', '.join(sorted(unknown))}")
    if "blocks" in options.settings[:-1]:
        parser.error("`blocks` is the last of --settings: leaves stay leaves")
    return options


def main() -> None:
    options = parsed()
    signal.alarm(options.limit)  # also where whoever started this rank is gone
    local_rank = int(os.environ["LOCAL_RANK"])
    get_accelerator().set_device(local_rank)
    deepspeed.init_distributed()
    device = torch.device(get_accelerator().device_name(local_rank))
    model = made(options.model, options.tier, device)
    for setting in options.settings:
        measure(model, setting, options, device)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
