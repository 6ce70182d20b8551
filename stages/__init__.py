"""One step of a render each, in the order of a render's life.

    RenderSpec ─plan─▶ conditioning ─▶ base_denoise ─▶ decode ─▶ export
      every further level:  upscale ─▶ renoise ─▶ highres_denoise ─▶ detail_pass ─▶ decode ─▶ export

`spec` is what a person writes, `plan` turns it into calls of stages, `runner` makes them and keeps them. A stage
takes tensors and gives tensors; only `runner` meets `storage`, only `models` loads a pretrained model.
"""

from __future__ import annotations
