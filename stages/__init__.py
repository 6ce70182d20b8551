"""The steps of a render: each stage takes tensors and gives tensors.

    RenderSpec ─plan─▶ conditioning ─▶ base_denoise ─▶ decode ─▶ export
      every further level:  upscale ─▶ renoise ─▶ highres_denoise ─▶ detail_pass ─▶ decode ─▶ export

Stages, in that order:

    conditioning            prompts -> text rows
    denoise                 base_denoise, highres_denoise, detail_pass: the sampling loop over a span of steps
    decode                  latents -> picture or frames
    upscale                 a level's result -> the clean reference of the next level
    renoise                 reference -> noisy latents at the restart step
    export, export_video    picture or frames -> a file

What every stage meets:

    spec, settings, plan    what a person writes, what holds at each stage of each level, the calls that follow
    stage, call             what a stage is; a stage with its parents and the key of its result
    runner, resume          look up, run and commit a call; go on after an interruption
    observer, device        who is told of progress; what a render computes on
    errors                  a spec that cannot be rendered, a result that cannot be right

Folders: `models` loads pretrained models, `planner` predicts memory and time, `media` reads and writes picture and
video files, `metrics` judges pictures, `shapes`, `shapes_dit` and `shapes_motion` are the embedded models' worlds. Only
`call`, `resume` and `runner` import `storage`; only `models` imports diffusers and transformers.
"""

from __future__ import annotations
