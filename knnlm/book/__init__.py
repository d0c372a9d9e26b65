"""What only this book needs: its runs, its numbers, its figures, and what changed since."""
