# shellcheck shell=bash
# shellcheck disable=SC2154 # tpu_pod.sh sets name, type, ssh and variables
# Sourced by tpu_pod.sh: the key with which gcloud reaches the workers, and the variables of --env.

# need_ssh_key: stops if ssh-agent lacks the key that gcloud wants in it for several workers at once.
# Without an agent gcloud reads the key's file, and waits for ever where that has a passphrase.
need_ssh_key() {
  local key=$HOME/.ssh/google_compute_engine flag listed print status=0
  case ${type##*-} in [1-8]) return ;; esac # one worker
  for flag in ${ssh[@]+"${ssh[@]}"}; do
    case $flag in
      --plain) return ;;
      --ssh-key-file=*) key=${flag#*=} ;;
    esac
  done
  if [ -n "$dry_run" ]; then
    comment "where an ssh-agent runs, it must hold this key:"
    run ssh-keygen -lf "$key"
    run ssh-add -l
    comment "then:"
    return
  fi
  listed=$(ssh-add -l 2>/dev/null) || status=$?
  if [ "$status" -gt 1 ]; then
    say "no ssh-agent is running: if the key has a passphrase, gcloud will stall; eval \"\$(ssh-agent)\" && ssh-add $key"
    return
  fi
  print=$(ssh-keygen -lf "$key" 2>/dev/null | cut -d' ' -f2) || true
  if [ -z "$print" ]; then
    fail "there is no key $key, which gcloud needs in ssh-agent: ssh-keygen -t rsa -f $key && ssh-add $key"
  fi
  case $listed in
    *"$print"*) ;;
    *) fail "ssh-agent does not hold $key, which gcloud needs for several workers: ssh-add $key" ;;
  esac
}

keys=rapo_jax.env # in the home folder of each worker, until the run has started
keys_here=''      # the folder of the same file on this machine, until it is copied

# send_keys: copies the variables of --env to every worker, in a file that its owner alone can read.
send_keys() {
  local variable
  if [ "${#variables[@]}" -eq 0 ]; then return; fi
  if [ -n "$dry_run" ]; then
    keys_here=KEYS
    comment "$keys_here/$keys has the values of ${variables[*]}, for its owner alone:"
  else
    trap drop_keys EXIT
    keys_here=$(mktemp -d)
    for variable in "${variables[@]}"; do
      echo "export $variable=$(quoted "$(printenv "$variable")")"
    done >"$keys_here/$keys"
    chmod 600 "$keys_here/$keys"
  fi
  remote all "install -m 600 /dev/null $keys"
  copy "$keys_here/$keys" "$name:$keys" --worker=all
  run rm -r "$keys_here"
}

# drop_keys: removes what send_keys has made, where the run did not start.
drop_keys() {
  rm -rf "$keys_here"
  remote all "rm -f $keys" || say "remove the file $keys in the home folder of each worker: it holds ${variables[*]}"
}

# keys_taken: each worker has read its file and removed it.
keys_taken() { trap - EXIT; }
