#!/bin/bash
# A SLURM cluster of two virtual nodes on this machine, for tests: slurm_cluster.sh start DIR | stop DIR
# Needs root and Debian's packages: apt-get install --no-install-recommends slurm-wlm munge
set -euo pipefail
what=$1 dir=$2
stop() {
    for name in slurmd-n1 slurmd-n2 slurmctld munged; do
        [ -f "$dir/$name.pid" ] && kill "$(cat "$dir/$name.pid")" 2>/dev/null
    done
    return 0
}
if [ "$what" = stop ]; then stop; exit 0; fi
mkdir -p "$dir"/{state,spool-n1,spool-n2,munge}
host=$(hostname -s)
chown munge:munge "$dir/munge"; chmod 711 "$dir" "$dir/munge"
[ -f /etc/munge/munge.key ] || { dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 2>/dev/null; chown munge:munge /etc/munge/munge.key; chmod 400 /etc/munge/munge.key; }
runuser -u munge -- /usr/sbin/munged --force --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" --log-file="$dir/munge/log" --seed-file="$dir/munge/seed"
cp "$dir/munge/pid" "$dir/munged.pid"
cat > "$dir/slurm.conf" <<EOF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
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
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17002 CPUs=2 State=UNKNOWN
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
sinfo -N; tail -5 "$dir"/*.log; stop; exit 1
