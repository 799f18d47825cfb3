"""What a frozen encoder knows, and where: Whisper-AT's figures as commands, each with a table and a picture."""
