"""The command line. Commands are loaded when they are called, so that ``tidemill --help`` stays light."""
