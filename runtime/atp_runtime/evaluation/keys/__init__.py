"""Answer keys: how the answer to a question is read and marked, by benchmark."""
