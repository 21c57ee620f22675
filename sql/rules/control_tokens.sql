-- The target holds no control token: none inside its ids, none spelled in its text but not its source.
control_tokens = 0
