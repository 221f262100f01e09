"""What a recipe takes on many devices: memory of each, and time, before there are any.

python benchmarks/scaling.py --config configs/time_moe_ultra.py --devices 128 --mesh fsdp=16 \
    --accumulation 8

The state (parameters and optimizer) per device is counted from shapes and shardings alone. The
temporaries are what the compiler plans for one update on as many emulated CPU devices; a TPU or a
GPU with attention kernels of its own plans less, and bfloat16 products take twice their room on a
CPU, so they are an upper estimate. The time is arithmetic, not measured:

    updates * 6 * (activated parameters + L T D) * batch * T / (devices * peak * utilisation)

6 operations for each activated parameter and point: 2 forward, 4 backward; the causal half of
attention's two products adds L T D to that; recomputed activations (remat full) would add a third
on top, which is part of what the utilisation stands for. Peak and utilisation are assumptions:
give those of your devices.
"""

import argparse
import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import Report, update_flops
from timemoe_jax.config import from_mapping
from timemoe_jax.models.base import count_parameters
from timemoe_jax.runtime import partitioning
from timemoe_jax.runtime.config import MeshConfig
from timemoe_jax.training.config import RunConfig
from timemoe_jax.training.start import check_fits
from timemoe_jax.training.step import abstract_state, compile_train_step


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/time_moe_ultra.py", help="of the recipe")
    parser.add_argument("--devices", type=int, default=128)
    parser.add_argument("--mesh", default="fsdp=16", help="sizes of axes: fsdp=16,expert=8")
    parser.add_argument("--accumulation", type=int, help="micro-batches; default: the config's")
    parser.add_argument("--batch", type=int, help="windows per update; default: the config's")
    parser.add_argument("--tflops", type=float, default=400.0, help="peak of one device, assumed")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of it, assumed")
    parser.add_argument("--state-only", action="store_true", help="do not compile")
    parser.add_argument("--quick", action="store_true", help="the base model on 8 devices")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()
    if args.quick:
        args.config, args.devices, args.mesh = "configs/time_moe_base.py", 8, "fsdp=4"
        args.batch, args.accumulation = 8, 1
    return args


def load(args: argparse.Namespace) -> RunConfig:
    """The recipe, on the mesh asked for."""
    spec = importlib.util.spec_from_file_location("recipe", args.config)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fields = module.get_config().to_dict()
    fields["data"]["synthetic_sequences"] = 1
    config = from_mapping(RunConfig, fields)
    sizes = {k: int(v) for k, v in (item.split("=") for item in args.mesh.split(",") if item)}
    train = dataclasses.replace(
        config.train,
        batch_size=args.batch or config.train.batch_size,
        gradient_accumulation=args.accumulation or config.train.gradient_accumulation,
    )
    return dataclasses.replace(config, mesh=MeshConfig(**sizes), train=train)


def state_bytes(config: RunConfig, mesh: jax.sharding.Mesh) -> int:
    """Of parameters and optimizer, on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract_state(config, mesh))
    )


def main() -> None:
    """Prints and writes the estimate."""
    args = parse()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.devices)
    config = load(args)
    mesh = partitioning.make_mesh(config.mesh)
    check_fits(config, mesh)
    total, active = count_parameters(config.model)
    name, report = f"{Path(args.config).stem} on {args.devices}", Report(args.json)
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    print(f"{total:,} parameters, {active:,} activated; mesh {axes}")
    batch, length, steps = config.train.batch_size, config.data.length, config.train.num_steps
    print(f"{batch} windows of {length} points in {config.train.gradient_accumulation} parts")

    state = state_bytes(config, mesh)
    report.add(f"{name} state per device", state / 1e9, "GB")
    print(f"state per device        {state / 1e9:8.2f} GB")
    if not args.state_only:
        plan = compile_train_step(config, mesh).memory_analysis()
        if plan is not None:
            temporary = plan.temp_size_in_bytes
            report.add(f"{name} temporaries per device", temporary / 1e9, "GB")
            print(f"temporaries per device  {temporary / 1e9:8.2f} GB, planned for a CPU")
    flops = steps * update_flops(config.model, batch, length)
    hours = flops / (args.devices * args.tflops * 1e12 * args.utilisation) / 3600
    report.add(f"{name} time", hours, "h")
    print(f"operations              {flops:8.2e} in {steps:,} updates")
    print(
        f"time                    {hours:8.1f} h at {args.utilisation:.0%} of "
        f"{args.tflops:.0f} TFLOP/s"
    )
    report.write()
    if args.json:
        print(json.dumps({"rows": len(report.rows), "path": str(args.json)}))


if __name__ == "__main__":
    main()
