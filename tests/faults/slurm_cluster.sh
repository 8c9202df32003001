#!/bin/bash
# A SLURM cluster of two virtual nodes on this machine, for tests: slurm_cluster.sh start DIR | stop DIR
# Needs root and Debian's packages: apt-get install --no-install-recommends slurm-wlm munge
set -euo pipefail
what=$1 dir=$2
alive() { [ -n "$1" ] && grep -qs "$dir" "/proc/$1/cmdline"; } # a daemon of this directory, and no other process with an old number
end() { # ask, wait, and use force at last: the next cluster must not meet this one's controller
    local pid; pid=$(cat "$dir/$1.pid" 2>/dev/null || true)
    for signal in TERM KILL; do
        alive "$pid" || return 0
        kill -"$signal" "$pid" 2>/dev/null || true
        for _ in $(seq 100); do alive "$pid" || return 0; sleep 0.1; done
        echo "$1 ($pid) did not end after SIG$signal" >&2
    done
    return 1
}
stop() { # the controller first: it ends its work through munged
    local left=0
    for name in slurmctld slurmd-n1 slurmd-n2 munge/munged; do end "$name" || left=1; done
    return $left
}
port() { python3 -c "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])"; }
if [ "$what" = stop ]; then stop; exit; fi
mkdir -p "$dir"/{state,spool-n1,spool-n2,munge}
host=$(hostname -s)
chown munge:munge "$dir/munge"; chmod 711 "$dir" "$dir/munge"
[ -f /etc/munge/munge.key ] || { dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 2>/dev/null; chown munge:munge /etc/munge/munge.key; chmod 400 /etc/munge/munge.key; }
trap '[ "$?" = 0 ] || stop' EXIT # nothing stays behind when something of the start fails
runuser -u munge -- /usr/sbin/munged --force --socket="$dir/munge/socket" --pid-file="$dir/munge/munged.pid" --log-file="$dir/munge/log" --seed-file="$dir/munge/seed"
cat > "$dir/slurm.conf" <<EOF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(port)
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
MpiDefault=none
ReturnToService=2
KillWait=10
SchedulerParameters=bf_interval=1,sched_interval=1
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$(port) CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$(port) CPUs=2 State=UNKNOWN
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=15 State=UP
PartitionName=high Nodes=n1,n2 MaxTime=60 PriorityTier=10 PreemptMode=OFF State=UP
EOF
export SLURM_CONF=$dir/slurm.conf
grep -q '^127.0.0.1.* n1' /etc/hosts || echo "127.0.0.1 n1 n2" >> /etc/hosts
slurmctld -f "$SLURM_CONF"
slurmd -N n1 -f "$SLURM_CONF"; slurmd -N n2 -f "$SLURM_CONF"
for _ in $(seq 60); do
    [ "$(sinfo -h -o %T -N 2>/dev/null | sort -u)" = idle ] && { echo "SLURM_CONF=$SLURM_CONF"; exit 0; }
    sleep 0.5
done
sinfo -N; tail -5 "$dir"/*.log; exit 1
