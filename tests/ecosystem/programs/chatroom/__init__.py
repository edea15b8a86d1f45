"""A chat room on Channels: one page, two kinds of consumers, one view that speaks to everybody."""
