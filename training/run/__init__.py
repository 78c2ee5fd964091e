"""What any long run needs: its folder, checkpoints, the machine, what people watch, what it would take."""
