"""The GPU pod: a supervisor that runs ms-swift in a child process, commits what it saves and explains how it ends."""
