"""Which transformer a file holds, by the beginnings of its tensors' names: every family that diffusers has.

Those with a class are rendered with from a single file; the others are refused by their names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "model.", "net.")
UNETS = "Stable Diffusion 1.x, 2.x, SDXL"


class Transformer(NamedTuple):
    """A family: its name, and sets of beginnings of names of which one is in its files, whole."""

    name: str
    marks: tuple[tuple[str, ...], ...]
    network: str | None = None  # the class of those that are read from single files

    def says(self) -> str:
        """Return what a file of it is, and what works, as the end of a sentence."""
        if self.network is None:
            return f"is {self.name}, which is not read from a single file; {works()} are"
        return (
            f"is {self.name}; --config FOLDER gives a diffusers folder of the same model, for its configurations, its "
            "tokenizers and what the file lacks"
        )


def _of(name: str, *marks: str, network: str | None = None) -> Transformer:
    return Transformer(name, tuple(tuple(mark.split()) for mark in marks), network)


BLOCKS = "transformer_blocks.0.attn."
TRANSFORMERS: tuple[Transformer, ...] = (  # the first that fits
    _of("a ControlNet of FLUX", "controlnet_blocks.", "controlnet_x_embedder."),
    _of("a ControlNet of Z-Image", "control_layers.", "control_all_x_embedder."),
    _of("a ControlNet of Stable Diffusion 3", "pos_embed_input.proj. controlnet_"),
    _of("Chroma Radiance", "distilled_guidance_layer. nerf_"),
    _of("Chroma", "distilled_guidance_layer.", network="ChromaTransformer2DModel"),
    _of("FLUX.3", "early_stream_modulations.", "mode_blocks.", "ref_time_in."),
    _of("FLUX.2", "double_stream_modulation_img.", "single_stream_modulation.", network="Flux2Transformer2DModel"),
    _of("HunyuanVideo or HunyuanImage", "txt_in.individual_token_refiner.", "context_embedder.token_refiner."),
    _of("JoyImage", "double_blocks. condition_embedder."),
    _of("AuraFlow", "double_layers.", "joint_transformer_blocks."),
    _of("Ovis-Image", "context_embedder_norm."),
    _of("Bria or LongCat-Image", "single_transformer_blocks. time_embed."),
    _of("FLUX.1", "double_blocks.", "transformer_blocks. single_transformer_blocks.", network="FluxTransformer2DModel"),
    _of("Stable Diffusion 3", "joint_blocks.", f"{BLOCKS}add_q_proj. pos_embed.proj. context_embedder.",
        network="SD3Transformer2DModel"),
    _of("Qwen-Image 2.1", "txt_in.text_norm.", "transformer_blocks. modulation. img_in."),
    _of("Qwen-Image", "txt_norm. img_in. txt_in.", network="QwenImageTransformer2DModel"),
    _of("NucleusMoE-Image", "txt_norm. img_in."),
    _of("Krea 2", "txtfusion.", "text_fusion."),
    _of("Ideogram 4", "llm_cond_proj."),
    _of("HiDream", "double_stream_blocks."),
    _of("ERNIE-Image", "final_linear. text_proj."),
    _of("Bria FIBO 2", "perceiver. noise_refiner."),
    _of("Z-Image", "x_pad_token", "all_x_embedder.", "layers.0.adaLN_modulation.0.",
        network="ZImageTransformer2DModel"),
    _of("Lumina 2", "noise_refiner.", "cap_embedder.", "time_caption_embed. context_refiner."),
    _of("Lumina-Next", "time_caption_embed. patch_embedder."),
    _of("Stable Cascade", "clip_txt_mapper.", "clip_txt_pooled_mapper.", "down_blocks.1.0.channelwise."),
    _of("MiniMax H3", "token_refiner."),
    _of("LTX-2", "audio_patchify_proj.", "av_ca_", "audio_proj_in."),
    _of("LTX-Video", "patchify_proj.", "transformer_blocks.27.scale_shift_table",
        "proj_in. caption_projection. scale_shift_table"),
    _of("Mochi", "pos_frequencies", "blocks.0.attn.qkv_x."),
    _of("Cosmos", "x_embedder.proj.1.", "blocks.block0.", "learnable_pos_embed."),
    _of("Kandinsky", "visual_transformer_blocks.", "visual_embeddings."),
    _of("CogVideoX or ConsisID", "patch_embed.text_proj. norm_final."),
    _of("EasyAnimate", "text_proj_t5."),
    _of("GLM-Image", "glyph_projector."),
    _of("CogView", "time_condition_embed."),
    _of("Hunyuan-DiT", "text_embedding_padding", "mlp_t5."),
    _of("OmniGen", "time_token. embed_tokens."),
    _of("Sana", "blocks.0.mlp.inverted_conv.", "transformer_blocks.0.ff.conv_inverted.", "caption_norm.",
        "attention_y_norm."),
    _of("PixArt, Latte or Allegro", "adaln_single.", "t_block."),
    _of("Sana or a kin of it", "blocks.0.cross_attn.kv_linear."),
    _of("PRX", "time_in. txt_in. blocks.0."),
    _of("Wan VACE", "vace_blocks."),
    _of("Wan Animate", "motion_encoder.", "face_adapter."),
    _of("Wan for image to video", "patch_embedding. img_emb.", "patch_embedding. condition_embedder.image_embedder."),
    _of("Wan", "patch_embedding. blocks.0.self_attn. head.modulation",
        "patch_embedding. condition_embedder. blocks.0.attn1.", network="WanTransformer3DModel"),
    _of("Wan or a kin of it", "patch_embedding. blocks.0.", "head.modulation", "motion_encoder.dec.", "vace_blocks."),
    _of("an audio model", "preprocess_conv.", "proj_in_conv."),
    _of("a transformer of no family that is known", f"{BLOCKS}to_q", "txt_in.", "x_embedder."),
)  # fmt: skip


def works() -> str:
    """Return the names of the families that are read from single files, in one sentence's words."""
    *names, last = (each.name for each in TRANSFORMERS if each.network is not None)
    return f"{', '.join((UNETS, *names))} and {last}"


def transformer_of(names: Iterable[str]) -> Transformer | None:
    """Return the family of the transformer that a file with tensors of these names holds; None for none."""
    bare = {name.removeprefix(prefix) for name in names for prefix in PREFIXES if name.startswith(prefix)} | set(names)
    for each in TRANSFORMERS:
        if any(all(any(name.startswith(mark) for name in bare) for mark in marks) for marks in each.marks):
            return each
    return None
