"""The second demo world: captioned portraits of people and pets, and everything measured on them."""
