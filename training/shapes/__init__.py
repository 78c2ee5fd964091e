"""The demo world: small captioned pictures of coloured shapes, and everything measured on them."""
