"""What a frozen encoder knows, and in which layers: Whisper-AT's figures as commands, each with a table and a
figure."""
