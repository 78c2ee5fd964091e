"""Networks and what is done to them: backbones, adapters, the student, both teachers, averages, NASA."""
