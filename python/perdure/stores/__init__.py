"""Where sessions are kept: the contract (`protocol`) and the stores that come with perdure."""
