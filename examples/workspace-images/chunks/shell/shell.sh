PS1='\w $ '
alias ll='ls -l' la='ls -la'
HISTFILE="$HOME/.ash_history"
