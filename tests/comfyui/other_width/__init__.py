"""A node for the test server alone: text as another model family's encoder would give it."""


class OtherWidth:
    """Makes an embedding [batch, tokens, width] twice as wide."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "widen"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("CONDITIONING",)}}

    def widen(self, text):
        return ([[embedding.repeat(1, 1, 2), extra] for embedding, extra in text],)


NODE_CLASS_MAPPINGS = {"OtherWidth": OtherWidth}
