"""A node for the demo's server alone, no part of the pack: what artists try first, and what Figure 3 shows to fail."""


class EmbeddingSubtraction:
    """positive - strength * negative, token by token: [batch, tokens, width]."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "subtract"
    CATEGORY = "SNOOPI/demo"

    @classmethod
    def INPUT_TYPES(cls):
        strength = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 2.0})
        return {"required": {"positive": ("CONDITIONING",), "negative": ("CONDITIONING",), "strength": strength}}

    def subtract(self, positive, negative, strength):
        ((words, extra),), ((unwanted, _),) = positive, negative
        return ([[words - strength * unwanted, extra]],)


NODE_CLASS_MAPPINGS = {"EmbeddingSubtraction": EmbeddingSubtraction}
