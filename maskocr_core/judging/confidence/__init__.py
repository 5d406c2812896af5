"""What a recogniser's confidence in a line is worth: made a probability, judged on other lines, put to use."""
