#!/bin/bash
# A true SLURM cluster on one machine, to try isoflop without one and to test it: 4 virtual nodes with host names and
# fake GPUs, accounting, preemption. Debian's packages, no systemd; everything lies in one folder and goes with it.
#
#   testbed.sh install            fetch the packages (root; Debian 12 or Ubuntu)
#   testbed.sh up                 write the configuration, start the daemons, wait for idle nodes
#   testbed.sh down               stop everything and delete the folder
#   testbed.sh clear              cancel all jobs, bring back lost and drained nodes, wait for idle nodes
#   testbed.sh env                the line that a shell needs: eval "$(slurm/testbed/testbed.sh env)"
#   testbed.sh node-kill N        node N is gone at once, with all its processes
#   testbed.sh node-start N       and comes back
#   testbed.sh ctld-kill, ctld-start        the controller is down, and comes back
#   testbed.sh ctld-mark, ctld-forget       it comes back without what was submitted after the mark
#
# Settings, from the environment:
#   TESTBED=/tmp/isoflop-testbed  the folder
#   TESTBED_PORT=17000            the first of the ports: controller, accounting, database, and 11.. for the nodes
#   TESTBED_ACCOUNTING=1          0: no MariaDB, no slurmdbd, and sacct fails
#   TESTBED_NODES=4 TESTBED_CPUS=16 TESTBED_MEMORY=16000 TESTBED_GPUS=4      of each node; memory in MB
#
# Partitions, all on all nodes: main (default), short (2 minutes at most), preempt (jobs of main take its nodes, after
# 10 s of grace and the jobs' signal), scavenge (the same, at once and without a signal).
set -u
BED=${TESTBED:-${TMPDIR:-/tmp}/isoflop-testbed}
PORT=${TESTBED_PORT:-17000}
ACCOUNTING=${TESTBED_ACCOUNTING:-1}
NODES=${TESTBED_NODES:-4} CPUS=${TESTBED_CPUS:-16} MEMORY=${TESTBED_MEMORY:-16000} GPUS=${TESTBED_GPUS:-4}
# Where namespaces are allowed, a node has its own host name and its processes die with it.
SPACES=$(unshare --mount --uts --pid --fork true 2>/dev/null && echo 1 || echo 0)
HOST=$(hostname -s)
USER_NAME=$(id -un)
PACKAGES="slurmctld slurmd slurm-client munge slurmdbd slurm-wlm-mysql-plugin mariadb-server"
export SLURM_CONF=$BED/etc/slurm.conf
PATH=$PATH:/usr/sbin:/sbin

say() { echo "testbed: $*" >&2; }
die() { say "error: $*"; exit 1; }
alive() { [ -s "$BED/pid/$1" ] && kill -0 "$(cat "$BED/pid/$1")" 2>/dev/null; }
within() { # SECONDS command: tries until it succeeds; programs that may hang are given a `timeout`
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || return 1; sleep 0.1; done
}
stop() { # NAME SIGNAL
  local pid tries=100
  alive "$1" && { pid=$(cat "$BED/pid/$1"); kill "-$2" "$pid"
    while kill -0 "$pid" 2>/dev/null; do tries=$((tries - 1)); [ $tries -gt 0 ] || kill -9 "$pid"; sleep 0.1; done; }
  rm -f "$BED/pid/$1"
}
each_node() { seq -f 'n%g' 1 "$NODES"; }

install() {
  [ "$(id -u)" = 0 ] || die "installing packages needs root: sudo make slurm-install"
  command -v apt-get >/dev/null || die "only Debian and Ubuntu are known here; install SLURM as your system does"
  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1       # so that no service starts
  # shellcheck disable=SC2086
  apt-get update -q && apt-get install -yq --no-install-recommends $PACKAGES
}

check() {
  local program missing=""
  for program in slurmctld slurmd munged sbatch $([ "$ACCOUNTING" = 1 ] && echo slurmdbd mariadbd); do
    command -v "$program" >/dev/null || missing="$missing $program"
  done
  [ -z "$missing" ] || die "not installed:$missing; get them with: sudo make slurm-install"
}

configure() {
  mkdir -p "$BED"/{etc,pid,log,state,spool,munge,dev,db}
  chmod 755 "$BED" "$BED/munge"                          # munged refuses folders that a group can write to
  [ -s "$BED/etc/munge.key" ] || (umask 077; head -c 1024 /dev/urandom >"$BED/etc/munge.key")
  local k node
  for k in $(seq 0 $((GPUS - 1))); do ln -sfn /dev/null "$BED/dev/nvidia$k"; done    # what slurmd takes for a device
  {
    sed -e "s#@BED@#$BED#g; s#@HOST@#$HOST#g; s#@USER@#$USER_NAME#g; s#@PORT@#$PORT#g; s#@FIRST@#$((PORT > 17000 ? PORT - 16999 : 1))#g" \
        -e "s#@SPACE@#$([ "$SPACES" = 1 ] && echo in-space.)#g" "$(dirname "$(readlink -f "$0")")/slurm.conf.in"
    k=10
    for node in $(each_node); do
      k=$((k + 1))
      echo "NodeName=$node NodeHostname=$([ "$SPACES" = 1 ] && echo "$node" || echo "$HOST") NodeAddr=127.0.0.1" \
        "Port=$((PORT + k)) CPUs=$CPUS Boards=1 SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1" \
        "RealMemory=$MEMORY Gres=gpu:h100:$GPUS State=UNKNOWN"
    done
    echo "PartitionName=DEFAULT Nodes=n[1-$NODES] MaxTime=1:00:00 DefaultTime=10"
    echo "PartitionName=main Default=YES PriorityTier=10 PreemptMode=OFF"
    echo "PartitionName=short MaxTime=2 DefaultTime=1 PriorityTier=10 PreemptMode=OFF"
    echo "PartitionName=preempt PriorityTier=1 PreemptMode=REQUEUE GraceTime=10"
    echo "PartitionName=scavenge PriorityTier=1 PreemptMode=REQUEUE GraceTime=0"
    [ "$ACCOUNTING" = 1 ] && echo "AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 1))
AccountingStoragePass=$BED/munge/socket
AccountingStorageTRES=gres/gpu"
  } >"$SLURM_CONF"
  (umask 077; cat >"$BED/etc/slurmdbd.conf" <<END
DbdHost=$HOST
DbdAddr=127.0.0.1
DbdPort=$((PORT + 1))
SlurmUser=$USER_NAME
AuthType=auth/munge
AuthInfo=socket=$BED/munge/socket
LogFile=$BED/log/slurmdbd.log
PidFile=$BED/pid/slurmdbd
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((PORT + 2))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
END
  )
  { echo "AutoDetect=off"
    for k in $(seq 0 $((GPUS - 1))); do echo "NodeName=n[1-$NODES] Name=gpu Type=h100 File=$BED/dev/nvidia$k"; done
  } >"$BED/etc/gres.conf"
  echo "ConstrainCores=no" >"$BED/etc/cgroup.conf"
  { cat /etc/hosts; for node in $(each_node); do echo "127.0.0.1 $node"; done; } >"$BED/etc/hosts"
}

start_munge() {
  alive munged && return
  munged --force --key-file="$BED/etc/munge.key" --socket="$BED/munge/socket" --pid-file="$BED/pid/munged" \
    --log-file="$BED/log/munged.log" --seed-file="$BED/munge/seed" --num-threads=4 2>>"$BED/log/munged.err"
  within 5 timeout 5 munge -S "$BED/munge/socket" -n || die "munged does not answer; see $BED/log/munged.err"
}

start_accounting() {
  [ "$ACCOUNTING" = 1 ] || return
  if ! alive mariadb; then
    [ -d "$BED/db/mysql" ] || mariadb-install-db --no-defaults --user="$USER_NAME" --datadir="$BED/db" --skip-test-db \
      --auth-root-authentication-method=normal >"$BED/log/mariadb-install.log" 2>&1 || die "see $BED/log/mariadb-install.log"
    setsid mariadbd --no-defaults --user="$USER_NAME" --datadir="$BED/db" --socket="$BED/db/sock" \
      --pid-file="$BED/pid/mariadb" --bind-address=127.0.0.1 --port=$((PORT + 2)) --skip-log-bin \
      --innodb-buffer-pool-size=128M --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900 \
      --performance-schema=OFF >"$BED/log/mariadb.log" 2>&1 </dev/null &
    within 30 timeout 5 mariadb-admin --no-defaults -uroot -S "$BED/db/sock" ping || die "MariaDB: see $BED/log/mariadb.log"
    mariadb --no-defaults -uroot -S "$BED/db/sock" -e "
      create database if not exists slurm_acct;
      create user if not exists slurm@localhost identified by 'slurm';
      create user if not exists slurm@'127.0.0.1' identified by 'slurm';
      grant all on slurm_acct.* to slurm@localhost; grant all on slurm_acct.* to slurm@'127.0.0.1';" || die "MariaDB"
  fi
  if ! alive slurmdbd; then
    slurmdbd || die "slurmdbd: see $BED/log/slurmdbd.log"  # reads the slurmdbd.conf beside $SLURM_CONF
    within 30 timeout 10 sacctmgr -n show cluster || die "slurmdbd does not answer; see $BED/log/slurmdbd.log"
  fi
  sacctmgr -n show cluster testbed format=cluster%20 | grep -q testbed || sacctmgr -i add cluster testbed >/dev/null
}

start_controller() {
  alive slurmctld || slurmctld 2>>"$BED/log/slurmctld.out" || die "slurmctld: see $BED/log/slurmctld.log"
  within 20 timeout 10 scontrol ping || die "slurmctld does not answer; see $BED/log/slurmctld.log"
}
kill_controller() { kill -9 "$(cat "$BED/pid/slurmctld")"; sleep 0.5; rm -f "$BED/pid/slurmctld"; }

start_node() {
  alive "slurmd.$1" && return
  if [ "$SPACES" = 1 ]; then
    # The node's /etc/hosts knows all of them, since torch meets its ranks by the name of a node.
    setsid unshare --mount --uts --pid --fork --mount-proc --kill-child=KILL -- bash -c \
      'hostname "$1" && mount --bind "$2/etc/hosts" /etc/hosts && exec slurmd -D -N "$1"' _ "$1" "$BED" \
      >>"$BED/log/slurmd.$1.out" 2>&1 </dev/null &
    echo $! >"$BED/pid/slurmd.$1"
  else
    slurmd -N "$1" 2>>"$BED/log/slurmd.$1.out" || die "slurmd: see $BED/log/slurmd.$1.log"
  fi
}
# A node counts once its slurmd has registered: jobs that started before would see no GPUs.
all_idle() { [ "$(timeout 10 scontrol -o show nodes | grep 'State=IDLE ' | grep -vc 'SlurmdStartTime=None')" = "$NODES" ]; }

up() {
  check; configure; start_munge; start_accounting; start_controller
  local node; for node in $(each_node); do start_node "$node"; done
  within 60 all_idle || { sinfo -N -l >&2; die "the nodes are not idle; see $BED/log"; }
  say "up, $NODES nodes, accounting $ACCOUNTING; for this shell: eval \"\$($0 env)\""
}
clear_jobs() {
  timeout 10 scancel -u "$USER_NAME"
  local node; for node in $(each_node); do start_node "$node"; done
  within 60 resumed || { sinfo -N -l >&2; die "the nodes are not idle; see $BED/log"; }
}
resumed() {
  all_idle && return
  local node; for node in $(each_node); do timeout 10 scontrol update "nodename=$node" state=resume; done
  false
}
all_down() {
  [ -d "$BED" ] || return 0
  [ -s "$BED/etc/munge.key" ] || die "$BED: no test bed, so it stays; TESTBED names the folder of one"
  timeout 10 scancel -u "$USER_NAME" 2>/dev/null
  local node; for node in $(each_node); do stop "slurmd.$node" "$([ "$SPACES" = 1 ] && echo KILL || echo TERM)"; done
  local daemon; for daemon in slurmctld slurmdbd munged; do stop $daemon TERM; done
  stop mariadb KILL                                      # what it would write is deleted next
  rm -rf "$BED"
}


case "${1:-}" in
  install) install ;;
  up) up ;;
  down) all_down ;;
  clear) clear_jobs ;;
  env) echo "export SLURM_CONF=$SLURM_CONF" ;;
  node-kill) kill -9 "$(cat "$BED/pid/slurmd.$2")" && rm -f "$BED/pid/slurmd.$2" ;;
  node-start) start_node "$2"; sleep 1; scontrol update "nodename=$2" state=resume 2>/dev/null; true ;;
  ctld-kill) kill_controller ;;
  ctld-start) start_controller ;;
  ctld-mark) scontrol -Q reconfigure; sleep 6; rm -rf "$BED/state.mark"; cp -a "$BED/state" "$BED/state.mark" ;;
  ctld-forget) kill_controller; rm -rf "$BED/state"; cp -a "$BED/state.mark" "$BED/state"; start_controller ;;
  *) sed -n '2,/^set -u/p' "$0" | sed '$d'; exit 2 ;;
esac
