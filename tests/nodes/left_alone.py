"""That a model is left as it was."""


def assert_clean(model):
    for name, module in model.model.named_modules():
        assert "forward" not in module.__dict__, name
        assert not [key for key in module.__dict__ if key.startswith("nasa")], name
