"""What each benchmark asks, and its report on the answers."""
