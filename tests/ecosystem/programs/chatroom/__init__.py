"""A chat room on Channels: one page, two kinds of consumers, and one view that sends to all."""
