"""What is refused, in one sentence: the thing, its value, what is allowed, and the nearest that would work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.doorstep.harness import Case, check, table

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

SPEC = "prompt: a red disc\nwidth: 128\nheight: 128\nsteps: 2\nmethod: {name: direct}\n"
SMALL = "--size 128x128 --steps 2 --method direct"


def spec(line: str) -> dict[str, str]:
    """A spec file with one more line."""
    return {"s.yaml": SPEC + line + "\n"}


@table(
    Case("typo", "rendr x", says=("command: 'rendr'", "`freescale --help`", "the nearest is 'render'")),
    Case("capitals", "RENDER x", says=("'render'",)),
    Case("habit-ls", "ls", says=("the nearest is 'runs'",)),
    Case("habit-txt2img", "txt2img x", says=("the nearest is 'render'",)),
    Case("habit-status", "status", says=("the nearest is 'runs'",)),
    Case("habit-continue", "continue x", says=("the nearest is 'resume'",)),
    Case("help-as-a-word", "help", says=("`freescale --help`",)),
    Case("a-prompt-alone", "'a red disc'", says=("freescale render 'a red disc'",)),
    Case("a-file-alone", "spec.yaml", says=("freescale render spec.yaml", "freescale batch spec.yaml")),
    Case("empty", "''", says=("command: ''",)),
    Case("nothing-like-it", "zzz", says=("command: 'zzz'", "`freescale --help`"), silent_on=("nearest",)),
    Case("of-a-group", "study mak x", says=("'mak' is not one of make, tally", "'make'")),
    Case("of-convert", "convert inceptio x", says=("the nearest is 'inception'",)),
    Case("option-before-the-command", "--jsn runs", says=("--jsn: freescale has no such option",)),
    Case("right", "--version", code=0, says=("freescale 0",)),
    Case("right-h", "-h", code=0, says=("Usage: freescale",)),
    Case("right-h-of-a-command", "render -h", code=0, says=("Usage: freescale render",)),
)
def test_commands(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


@table(
    Case("typo", "render x --sede 5", says=("--sede", "the nearest is --seed")),
    Case("typo-of-a-parameter", "render x --detail-scal 1", says=("'freescale'", "the nearest is --detail-scale")),
    Case("underscores", "render x --guidance_scal 7", says=("--guidance-scale",)),
    Case("cfg", "render x --cfg 7", says=("the nearest is --guidance-scale",)),
    Case("cfg-with-equals", "render x --cfg=7", says=("the nearest is --guidance-scale",)),
    Case("cfg-scale", "render x --cfg-scale 7", says=("--guidance-scale",)),
    Case("sampler", "render x --sampler euler", says=("--solver",)),
    Case("scheduler", "render x --scheduler euler", says=("--solver",)),
    Case("diffusers-steps", "render x --num_inference_steps 30", says=("--steps",)),
    Case("width", "render x --width 512", says=("--size",)),
    Case("negative", "render x --negative blurry", says=("--negative-prompt",)),
    Case("checkpoint", "render x --ckpt m", says=("--model",)),
    Case("init-image", "render x --init-image a.png", says=("--image",)),
    Case("strength", "render x --strength 0.5", says=("--restart",)),
    Case("output", "render x --output a.png", says=("--out",)),
    Case("precision", "render x --precision fp16", says=("--dtype",)),
    Case("low-vram", "render x --lowvram", says=("--memory",)),
    Case("gpu", "render x --gpu 0", says=("--device",)),
    Case("force", "render x --force", says=("--overwrite",)),
    Case("short-o", "render x -o a.png", says=("-o", "--out")),
    Case("short-s", "render x -s 5", says=("-s", "--seed")),
    Case("nothing-like-it", "render x --zzz 1", says=("--zzz", "`freescale methods`"), silent_on=("nearest",)),
    Case("of-another-method", "render x --method demofusion --detail-scale 1", says=("'demofusion'", "freescale")),
    Case("of-a-method-without", "render x --method direct --restart 0.5", says=("--restart", "'direct'", "freescale")),
    Case("before-the-prompt", "render --detail-scale 1 x", says=("--detail-scale", "after the prompt")),
    Case("value-missing", "render x --size", says=("--size: its value is missing",)),
    Case("value-is-an-option", "render x --size --seed 5", says=("--size: its value is missing; --seed",)),
    Case("value-empty", "render x --size ''", says=("--size: its value is empty",)),
    Case("value-empty-with-equals", "render x --out=", says=("--out: its value is empty",)),
    Case("home-empty", "render x --home ''", says=("--home: its value is empty",)),
    Case("image-empty", "render x --image ''", says=("--image: its value is empty",)),
    Case("flag-with-a-value", "render x --overwrite=yes", says=("--overwrite: it takes no value",)),
    Case("prompt-not-quoted", "render a red disc", says=("'red'", "quote the prompt")),
    Case("prompt-missing", "render", says=("PROMPT|SPEC is missing", "freescale render --help")),
    Case("run-missing", "show", says=("RUN is missing",)),
    Case("jobs-empty", "batch ''", says=("JOBS: it is empty",)),
    Case("one-word-too-many", "runs x", says=("'x'", "freescale runs --help")),
    Case("typo-of-another-command", "models --jsn", says=("--jsn: freescale models has no such option", "--json")),
    Case("typo-of-batch", "batch jobs.txt --untill 06:30", says=("--until",)),
    Case("typo-of-redo", "redo x --frm renoise", says=("--from",)),
    Case("right-none", f"plan x {SMALL} --freeu none --guidance-scale none", code=0, says=("base_denoise",)),
    Case("right-negative", f"plan x {SMALL} --negative-prompt ''", code=0, says=("base_denoise",)),
    Case("right-commas", f"plan x {SMALL} --negative-prompt 'blur, noise' --solver ddim", code=0, says=("decode",)),
    Case(
        "right-cascade",
        "plan x --size 256x256 --steps 2 --cascade 128x128,256x256 --dilation 0,0.5 --no-fusion",
        code=0,
        says=("128x128 -> 256x256",),
    ),
)
def test_options(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


@table(
    Case("asterisk", "render x --size 512*512", says=("size: '512*512'", "WIDTHxHEIGHT", "512x512")),
    Case("one-number", "render x --size 768", says=("'768'", "768x768")),
    Case("blanks", "render x --size '512 x 768'", says=("512x768",)),
    Case("comma", "render x --size 512,768", says=("512x768",)),
    Case("times-sign", "render x --size 512\u00d7768", says=("512x768",)),
    Case("unit", "render x --size 512x768px", says=("512x768",)),
    Case("1k", "render x --size 1k", says=("'1k'", "1024x1024")),
    Case("4K", "render x --size 4K", says=("4096x4096",)),
    Case("1080p", "render x --size 1080p", says=("1920x1080",)),
    Case("aspect", "render x --size 16:9", says=("1024x576",)),
    Case("off-the-grid-too", "render x --size 500*300", says=("496x304",)),
    Case("a-word", "render x --size large", says=("'large'", "768x512")),
    Case("decimals", "render x --size 512.0x512.0", says=("512x512",)),
    Case("too-small", "render x --size 32x32", says=("width: 32 is too small", "64 to 16384")),
    Case("too-large", "render x --size 32768x32768", says=("width: 32768 is too large", "64 to 16384")),
    Case("of-a-comparison", "compare --size 512", says=("sizes.0: '512'", "512x512")),
    Case(
        "of-a-cascade",
        "render x --size 256x256 --cascade 128,256",
        says=("cascade: [128, 256]", "[[128, 128], [256, 256]]"),
    ),
    Case("not-of-a-level", "render s.yaml", files=spec("cascade: small"), says=("cascade: 'small'", "768x512")),
)
def test_sizes(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


@table(
    Case("method", "render x --method freescal", says=("method: 'freescal'", "`freescale methods`", "'freescale'")),
    Case("method-capitals", "render x --method FreeScale", says=("the nearest is 'freescale'",)),
    Case("ablation", "render x --method freescale/no-fuson", says=("'freescale/no-fusion'",)),
    Case("method-of-a-comparison", "compare --method hidifusion", says=("methods.0", "'hidiffusion'")),
    Case("method-of-an-evaluation", "evaluate --method demo-fusion", says=("'demofusion'",)),
    Case("solver", "render x --solver eulr", says=("solver: 'eulr' is not one of auto, euler", "'euler'")),
    Case("right-a1111", f"plan x {SMALL} --solver 'DPM++ 2M SDE Karras'", code=0, says=("base_denoise", "decode")),
    Case("right-comfy", f"plan x {SMALL} --solver dpmpp_2m_sde_gpu --sigmas karras", code=0, says=("decode",)),
    Case("solver-nearest", "render x --solver PLMS", says=("'PLMS' is not one of", "'ddim'")),
    Case("solver-none-like-it", "render x --solver zzz", says=("'zzz' is not one of",)),
    Case(
        "solver-and-sigmas",
        "render x --solver 'Euler Karras' --sigmas beta",
        says=("'Euler Karras' has sigmas 'karras', and sigmas is 'beta'",),
    ),
    Case("sigmas", "render x --sigmas karas", says=("sigmas: 'karas' is not one of auto, uniform, karras", "'karras'")),
    Case("spacing", "render x --timestep-spacing trailling", says=("timestep_spacing: 'trailling'", "'trailing'")),
    Case("preset", "render x --preset lightning4", says=("preset: 'lightning4' is not one of", "'lightning-4'")),
    Case(
        "right-preset",
        "plan x --size 128x128 --method direct --preset lightning-4",
        code=0,
        says=("base_denoise", "0-4"),
    ),
    Case("preset-typo", "render x --preset swfit", says=("preset: 'swfit'", "`freescale presets`", "'swift'")),
    Case("preset-of-two", "render x --preset lightning-4,drafft", says=("preset: 'lightning-4,drafft'", "'draft'")),
    Case("preset-two-methods", "render x --preset swift,draft", says=("both methods", "such as lightning-4,swift")),
    Case("preset-two-of-few", "render x --preset turbo,lcm", says=("'turbo' and 'lcm'", "both for few steps")),
    Case("preset-and-method", "render x --preset swift --method direct", says=("method is 'direct'; leave one",)),
    Case(
        "preset-over-a-file",
        "render s.yaml --preset draft",
        files=spec(""),
        says=("preset: 'draft' is the method 'draft', and method is 'direct'",),
    ),
    Case("preset-and-a-parameter", "render x --preset swift --restart 0.5", says=("--restart", "'swift'", "freescale")),
    Case(
        "preset-in-a-file",
        "render s.yaml",
        files={"s.yaml": "prompt: x\npreset: [swift, drft]\n"},
        says=("s.yaml:2", "preset", "'drft'", "'draft'"),
    ),
    Case(
        "right-presets",
        "plan x --size 192x128 --preset draft,lightning-4 --leave 0.5",
        code=0,
        says=("base_denoise", "0-2", "UNet calls of the training size"),
    ),
    Case("right-listed", "presets", code=0, says=("swift", "n = 64", "not measured on SDXL", "lightning-4")),
    Case("presets-word", "presets swift", says=("'swift'", "freescale presets --help")),
    Case("timesteps-rise", "render x --timesteps 1,2,3", says=("timesteps", "fall, such as [999, 749, 499, 249]")),
    Case("timesteps-high", "render x --timesteps 1000,499", says=("timesteps", "999")),
    Case("timesteps-and-steps", "render x --timesteps 9,5 --steps 3", says=("steps is 3, and there are 2 timesteps",)),
    Case("interval", "render x --guidance-interval 0.8:0.2", says=("guidance_interval", "such as 0.2:0.8")),
    Case("deepcache", "render x --deepcache 1", says=("deepcache", "allowed: 2 to 50")),
    Case("deepcache-method", "render x --deepcache 2 --method hidiffusion", says=("hidiffusion", "direct, freescale")),
    Case("todo", "render x --todo on", says=("todo", "auto or a factor above 1", "such as 2")),
    Case("interval-word", "render x --guidance-interval late", says=("guidance_interval", "such as 0.2:0.8")),
    Case("prediction", "render x --prediction v", says=("prediction: 'v' is not one of", "'v_prediction'")),
    Case("ztsnr-of-noise", "render x --ztsnr on", says=("prediction_type 'epsilon'", "'v_prediction'")),
    Case("right-ztsnr", f"plan x {SMALL} --ztsnr on --prediction v_prediction", code=0, says=("decode",)),
    Case("format", "render x --format jpg", says=("format: 'jpg' is not one of png, tiff, webp", "'png'")),
    Case("format-of-a-video", "render x --format mov", says=("'mp4'",)),
    Case("dtype", "render x --dtype fp16", says=("model.dtype: 'fp16'", "'float16'")),
    Case("dtype-bf16", "render x --dtype bf16", says=("'bfloat16'",)),
    Case("pixel-format", "render x --pixel-format yuv420", says=("'yuv420p'",)),
    Case("device", "render x --device gpu", says=("device: 'gpu' is not one of auto, cpu, mps, cuda", "'cuda'")),
    Case("device-cuda0", "render x --device cuda0", says=("'cuda'",)),
    Case("vae-tile", "render x --vae-tile 300", says=("vae_tile: 300 is not one of 64, 128, 256, 512, 1024",)),
    Case("model", "render x --model shape", says=("model: 'shape' is not on disk", "the nearest is 'shapes'")),
    Case("model-none-like-it", "render x --model sdxl", says=("model: 'sdxl' is not on disk",), silent_on=("nearest",)),
    Case("metric", "evaluate --metric clipscore", says=("metrics.0: 'clipscore'", "'clip_score'")),
    Case("extractor", "evaluate --extractor incepton", says=("'inception'",)),
    Case("protocol", "evaluate --protocol basee", says=("reference.protocol: 'basee'", "'base'")),
    Case("stage", "redo x --from decod", says=("'x'",)),
    Case("run-where-none-is", "resume x", says=("run: 'x' does not exist",)),
    Case("run-to-show", "show ../x", says=("run: '../x'",)),
    Case("run-to-prune", "prune --run x", says=("run: 'x'",)),
    Case("field", "render s.yaml", files=spec("sampler: euler"), says=("sampler: unknown field", "'solver'")),
    Case("field-typo", "render s.yaml", files=spec("guidence_scale: 7"), says=("'guidance_scale'",)),
    Case("field-none-like-it", "render s.yaml", files=spec("zzz: 7"), says=("zzz: unknown field; allowed: prompt",)),
    Case("field-of-the-model", "render s.yaml", files=spec("model: {name: shapes, revison: a}"), says=("'revision'",)),
    Case(
        "field-of-the-method",
        "render s.yaml",
        files={"s.yaml": "prompt: x\nmethod: {name: freescale, detail: 1}\n"},
        says=("detail", "detail_scale"),
    ),
    Case("prompt-misspelt", "render s.yaml", files={"s.yaml": "promt: x\n"}, says=("promt: unknown field", "'prompt'")),
    Case("prompt-missing", "render s.yaml", files={"s.yaml": "seed: 1\n"}, says=("prompt: is missing",)),
    Case("right-methods", "methods", code=0, says=("--detail-scale", "freescale/no-fusion", "hidiffusion")),
    Case("right-methods-json", "methods --json", code=0, says=('"detail_scale": {"type": "number", "default": 2.0}',)),
)
def test_names(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


@table(
    Case("steps-zero", "render x --steps 0", says=("steps: 0 is too small; allowed: 1 to 1000",)),
    Case("steps-a-word", "render x --steps ten", says=("--steps: 'ten' is not a whole number",)),
    Case("steps-half", "render x --steps 30.5", says=("--steps: '30.5'", "30 and 31")),
    Case("seed-a-word", "render x --seed lucky", says=("--seed: 'lucky' is not a whole number",)),
    Case("seed-too-large", "render x --seed 99999999999999999999", says=("0 to 9223372036854775807",)),
    Case("decimal-comma", "render x --guidance-scale 7,5", says=("guidance_scale: '7,5' is not a number; write 7.5",)),
    Case("guidance-too-large", "render x --guidance-scale 60", says=("60 is too large; allowed: 0 to 50",)),
    Case("guidance-nan", "render x --guidance-scale .nan", says=("guidance_scale: '.nan' is not a number",)),
    Case("rescale-percent", "render x --guidance-rescale 70%", says=("guidance_rescale: '70%' is not a number",)),
    Case("eta", "render x --eta 2", says=("eta: 2 is too large; allowed: 0 to 1",)),
    Case("crf", "render x --crf 99", says=("crf: 99 is too large; allowed: 0 to 51",)),
    Case("crf-of-export", "export x --crf 99", says=("--crf: 99 is too large",)),
    Case("fps-a-word", "render x --fps fast", says=("fps: 'fast' is not a number of frames a second", "24000/1001")),
    Case("fps-too-large", "render x --fps 500", says=("fps: '500' is not from 1 to 240",)),
    Case("frames-too-many", "render x --frames 5000", says=("frames: 5000 is too large; allowed: 1 to 1024",)),
    Case("motion-fps", "render x --motion-fps 0", says=("motion_fps: 0 is too small; allowed: above 0 to 240",)),
    Case("restart", "render x --restart 2", says=("method: restart is 2.0, allowed: 0 to below 1",)),
    Case("flag-of-a-method", "render x --fusion perhaps", says=("method.fusion: 'perhaps' is not true or false",)),
    Case("dilation", "render x --dilation 0.5", says=("method.dilation: 0.5 is not a list",)),
    Case("threads", "render x --threads 0", says=("threads: 0 is too small; allowed: 1 to 1024",)),
    Case("checkpoints", "render x --checkpoint-every -1", says=("checkpoint_every: -1", "allowed: 0 to 86400")),
    Case("memory", "render x --memory lots", says=("memory: 'lots' is not a number of bytes", "16GiB")),
    Case("memory-unit", "render x --memory '16 gigs'", says=("memory: '16 gigs' is not a number of bytes",)),
    Case("mask", "render x --mask face.png", says=("mask: 'face.png' is not PATH:DETAIL_SCALE", "face.png:3.0")),
    Case("age", "prune --older-than week", says=("older_than: 'week'", "7d")),
    Case("max-size", "prune --max-size big", says=("max_size: 'big' is not a number of bytes",)),
    Case("prompt-too-long", "render " + "x" * 4001, says=("prompt: has 4001 characters; allowed: at most 4000",)),
    Case("prompt-empty", "render ''", says=("prompt: is empty",)),
    Case("number-in-a-spec", "render s.yaml", files=spec("seed: [1]"), says=("seed: [1] is not a whole number",)),
    Case("text-in-a-spec", "render s.yaml", files=spec("image: 5"), says=("image: 5 is not text; put it into quotes",)),
    Case(
        "list-in-a-spec", "render s.yaml", files=spec("regions: face.png"), says=("regions: 'face.png' is not a list",)
    ),
    Case(
        "entry-in-a-spec",
        "render s.yaml",
        files={"s.yaml": "prompt: x\nregions: [{mask: a.png}]\n"},
        says=("regions.0.detail_scale: is missing",),
    ),
)
def test_values(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


@table(
    Case("yaml", "render s.yaml", files={"s.yaml": "prompt: [a\nseed: 1\n"}, says=("s.yaml", "line", "expected")),
    Case("yaml-tab", "render s.yaml", files={"s.yaml": "prompt: x\nmethod:\n\tname: direct\n"}, says=("'\\t'",)),
    Case("yaml-colon", "render s.yaml", files={"s.yaml": "prompt: a: b\n"}, says=("mapping values are not allowed",)),
    Case("json", "render s.json", files={"s.json": '{"prompt": "x",}'}, says=("s.json:1",)),
    Case("not-text", "render s.yaml", files={"s.yaml": b"prompt: \xff\xfe\n"}, says=("s.yaml", "UTF-8")),
    Case("a-folder", "render d.yaml", files={"d.yaml/x": ""}, says=("d.yaml", "is a folder")),
    Case("missing", "render none.yaml", says=("none.yaml", "does not exist")),
)
def test_causes(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


PLAN = "plan 'a (red:1.2) disc' --size 128x128"


@table(
    Case("right", f"{PLAN} --prompt-syntax a1111", code=0, silent_on=("note:",)),
    Case("plain", PLAN, code=0, says=("'(red:1.2)'", "--prompt-syntax a1111 or comfy reads such")),
    Case("typo", f"{PLAN} --prompt-syntax a111", says=("'a111' is not one of plain, a1111, comfy", "'a1111'")),
    Case("emphasis-typo", f"{PLAN} --prompt-syntax a1111 --emphasis nonorm", says=("emphasis: 'nonorm'", "'no_norm'")),
    Case("emphasis-of-a-plain-prompt", f"{PLAN} --emphasis comfy", says=("emphasis: comfy", "a1111 or comfy")),
    Case("by-step", "plan '[a:b:0.5]' --prompt-syntax a1111", says=("'[a:b:0.5]'", "step to step")),
    Case("hypernet", "plan 'a <hypernet:x:1>' --prompt-syntax a1111", says=("'<hypernet:x:1>'", "<lora:NAME:WEIGHT>")),
    Case("no-weight", "plan '<lora:x:heavy>' --prompt-syntax comfy", says=("'heavy'", "-100 to 100")),
    Case("no-embedding", "plan 'embedding:glow' --prompt-syntax comfy", says=("'glow'", "embeddings/")),
    Case("a-bare-word", f"{PLAN} --clip-skip two", says=("model.clip_skip: 'two' is not a whole number",)),
    Case("clip-skip", f"{PLAN} --clip-skip 9", says=("model.clip_skip: 9", "1 to 2 work")),
    Case("clip-skip-0", f"{PLAN} --clip-skip 0", says=("model.clip_skip: 0 is too small", "1 to 32")),
    Case("usual-clip-skip", f"{PLAN} --clip-skip 2", code=0, says=("CLIP skip 2 is what shapes is trained for",)),
    Case(
        "lost-file", f"{PLAN} --prompt-syntax a1111 --embedding a.safetensors", says=("'a.safetensors'", "not a file")
    ),
    Case(
        "pickle",
        f"{PLAN} --prompt-syntax a1111 --embedding a.pt",
        says=("a.pt' is a pickle", "freescale convert embedding"),
        files={"a.pt": b"PK"},
    ),
    Case(
        "web-page",
        f"{PLAN} --prompt-syntax a1111 --embedding a.safetensors",
        says=("model.embeddings: ", "a.safetensors"),
        files={"a.safetensors": "<!DOCTYPE html>" + " " * 200},
    ),
    Case("no-pickle", "convert embedding a.pt b.safetensors", says=("file: 'a.pt' is not a file",)),
    Case("not-of-tensors", "convert embedding a.pt b.safetensors", says=("a.pt",), files={"a.pt": "words"}),
)
def test_prompts(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)
