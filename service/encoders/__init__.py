"""The token contract and the engines that execute it."""
