"""What an example is: labels with their mask, pixels by one path, and the score file. Imports no torch."""
