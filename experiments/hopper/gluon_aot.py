"""Compiles for sm_90a without a GPU; registers, spills, SASS counts. python gluon_aot.py [dir]"""
import os, re, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon import language as gl
import gluon_kernels as G

BIN = Path(triton.__file__).parent / "backends/nvidia/bin"

def desc(shape):
    lay = gl.NVMMASharedLayout.get_default_for(shape, gl.bfloat16)
    return f"tensordesc<bf16{list(shape)},{lay!r}>"

SUMS = dict(plan="*fp32", target="*i64", row_sum="*fp32", col_sum="*fp32", first_row="i32", slab_rows="i32", columns="i32", strip_tiles="i32", spread="i32", kept_rows="i32")
GRAD = dict(plan="*fp32", row_factor="*fp32", col_factor="*fp32", target="*i64", target_gradient="*fp32", scale_part="*fp64", first_row="i32", chunk_rows="i32", columns="i32", strip_tiles="i32", spread="i32")

def build(kind, **c):
    fn = G.sum_exponentials_hopper if kind == "sums" else G.store_gradient_hopper
    t = dict(SUMS if kind == "sums" else GRAD)
    BM, BN, BK = c["BM"], c["BN"], c["BK"]
    t["x_desc"], t["y_desc"] = desc([BM, BK]), desc([BN, BK])
    t["out_desc" if kind == "grad" else "kept_desc"] = desc([BM, BN // 2])
    sig, cst, attrs = {}, {}, {}
    for p, name in enumerate(fn.arg_names):
        if name.isupper():
            sig[name] = "constexpr"; cst[(p,)] = c[name]
        else:
            sig[name] = t[name]
            if t[name].startswith("*"):
                attrs[(p,)] = [["tt.divisibility", 16]]
    src = GluonASTSource(fn, sig, cst, attrs)
    return triton.compile(src, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=4, maxnreg=168))

def report(kind, **c):
    k = build(kind, **c)
    d = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()); d.mkdir(exist_ok=True)
    name = kind + "_" + "_".join(f"{a}{int(b)}" for a, b in c.items())
    (d / f"{name}.ptx").write_text(k.asm["ptx"]); (d / f"{name}.ttgir").write_text(k.asm["ttgir"])
    (d / f"{name}.cubin").write_bytes(k.asm["cubin"])
    res = subprocess.run([BIN / "cuobjdump", "--dump-resource-usage", d / f"{name}.cubin"], capture_output=True, text=True).stdout
    sass = subprocess.run([BIN / "cuobjdump", "-sass", d / f"{name}.cubin"], capture_output=True, text=True).stdout
    (d / f"{name}.sass").write_text(sass)
    fig = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", res))
    ops = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?([A-Z][A-Z0-9_.]*)", sass)
    base = {}
    for o in ops: base[o.split(".")[0]] = base.get(o.split(".")[0], 0) + 1
    keys = "HGMMA WARPGROUP MUFU FFMA FADD FMUL SHFL FSEL F2FP STSM STS LDS LDG STG UTMALDG UTMASTG SYNCS BAR FENCE LDL STL USETMAXREG MOV".split()
    print(name, "shared", k.metadata.shared, fig, {x: base.get(x, 0) for x in keys}, "total", len(ops), flush=True)
    return k

CONFIGS = {
    "sums": [
        (512, False, G.Tile()), (512, False, G.Tile(SLOTS=5)), (512, False, G.Tile(BM=64, BN=256, SLOTS=4)), (512, True, G.Tile(SLOTS=4)),
        (512, True, G.Tile(SLOTS=5)), (768, False, G.Tile()), (512, False, G.Tile(BK=32, SLOTS=12)),
    ],
    "grad": [(512, True, G.Tile(SLOTS=4)), (512, True, G.Tile(SLOTS=5)), (512, True, G.Tile(SLOTS=6))],
}
if __name__ == "__main__":
    which = sys.argv[2] if len(sys.argv) > 2 else "all"
    for kind, configs in CONFIGS.items():
        for depth, stages, tile in configs if which in ("all", kind) else ():
            try:
                c = G.constants(tile, depth, stages, G.SUMS_SCRATCH_BYTES if kind == 'sums' else G.GRADIENT_SCRATCH_BYTES)
            except ValueError as e:
                print(kind, depth, e); continue
            if kind == "sums": c["KEEPS"] = stages
            report(kind, HAS_TARGET=True, **c)
