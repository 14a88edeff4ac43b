// The cluster file owns how several servers agree on one log. Its sections, in the order in which a message meets them:
//
//   - the protocol, as a value: time, roles, elections, messages, followers, the leader, voters, the disk, the log;
//   - the driver (cluster): the goroutine that owns the value, the messages between servers, snapshots;
//   - the plane, which every node has: the listener, the members, bootstrapping, and the calls between nodes.
//
// The protocol is Raft (Ongaro, "Consensus: Bridging Theory and Practice", 2014; "thesis" below) with a bully election:
// rank, the order of names, decides who campaigns first. It reads no clock and no disk, sends nothing and starts
// nothing. It is told of ticks, messages, proposals and finished writes, and says in ready what the driver must do. So
// any history can be replayed from a seed, and the simulation in cluster_test.go does that.
//
// The plane decides nothing that the log must agree on: what it knows of other nodes is a hint that may be wrong.
//
// # Why two leaders never both fire
//
// Two servers can believe at the same time that they lead: one was paused or cut off, and does not know yet that it was
// replaced. No clock prevents that. Each of these links keeps a tick from running twice, whatever the clocks do:
//
//  1. Term. A server votes once in a term (mayVote), and the vote is on its disk before anybody hears of it (hold,
//     persisted, release).
//  2. Majority. A leader has the votes of a majority (countVote, hasMajority), and two majorities share a server. That
//     is true even for two successive lists of voters, because they differ by one server (mayChangeVoters). So a term
//     has at most one leader, and only that leader can commit anything in the term.
//  3. Commit. A decision counts when a majority has it on disk (maybeCommit). A voter that knows a later term accepts
//     nothing from an older leader (step), and refuses a candidate whose log lacks what it has (upToDate). So the new
//     leader has everything that the old one committed, and the old one commits nothing more.
//  4. Apply. All servers apply the log in one order, and a decision is accepted only for the tick that is next, and
//     later than the last one decided (decide in store.go). So of two decisions about a tick, the first in the log is
//     accepted and the other changes nothing, whoever proposed them.
//  5. Leadership. Only an accepted decision becomes orders: propose returns after apply (written). A leader decides
//     nothing until its first entry, and so everything before it, is applied (updateLeadership). A server that lost its
//     majority or was paused steps down (tickLeader, noticePause). That only shortens the time with two leaders; safety
//     does not depend on it.
//  6. Process. An accepted execution is bound to one process at a time: one incarnation of one node. Only a bind in the
//     log moves it to another, and a leader proposes that only after the first process certainly did not start it. So
//     two leaders never order one execution from two processes that can both run it.
//  7. Dispatch. An order carries its leader's term and the incarnation that it is for. The process refuses an order for
//     another incarnation or with a term before the latest that it knows, and takes an execution once (start in
//     executor.go). So when two leaders send the same order, one run starts.
//
// # Goroutines
//
// cluster.run owns the value and executes the events that others send it. Its children are one write at a time, one
// call at a time on each link, and the leader's work while this server leads. plane.run has the HTTP server and the
// loop that sends heartbeats. Each waits for its children.
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/hkdf"
	crand "crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	stdlog "log"
	"log/slog"
	"maps"
	"math"
	"math/big"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	appendEntriesMax  = 1_000    // in one append
	appendBytesMax    = 1 << 20  // of data in one append, unless a single entry is larger
	backlogEntriesMax = 10_000   // proposed and not yet committed
	backlogBytesMax   = 16 << 20 // proposed and not yet on this server's disk: they are held in memory
	waitingBytesMax   = 64 << 20 // proposed and not yet applied: in memory too, if the other servers are slow
	positionMax       = 1 << 62  // of a term or an index in a message: SQLite holds up to 2^63 - 1, and both still grow
	termJumpMax       = 1 << 32  // from the own term to one in a message: an election a second for 136 years
)

// Errors of propose, removeVoter and transfer.
var (
	errNotLeader = errors.New("this server is not the leader")
	errBusy      = errors.New("the leader has too much in progress; try again")
	errLastVoter = errors.New("the last voter cannot be removed")
)

// Errors of step, which also returns errMalformed. errMisdirected changes nothing; the others are fatal.
var (
	errMisdirected   = errors.New("message for another server")
	errSecondLeader  = errors.New("two leaders in one term: a data directory was copied or set back")
	errBrokenHistory = errors.New("the leader contradicts committed entries: a data directory was set back")
)

type messageKind uint8

const (
	msgPreVote     messageKind = iota + 1 // would you vote for me in Term?
	msgPreVoteYes                         // yes, to msgPreVote
	msgVote                               // vote for me in Term
	msgVoteYes                            // yes, to msgVote
	msgVoteNo                             // no, to either; Term is the sender's own
	msgAppend                             // heartbeat, and the entries after Prev
	msgAppendReply                        // the state of the follower's log
	msgSnapshot                           // for a follower that needs entries that were dropped
	msgTimeoutNow                         // a leadership transfer: campaign now
)

// A message goes from one server to another. It may be lost, duplicated, delayed or reordered.
type message struct {
	Kind     messageKind
	From, To server
	Term     uint64

	// Prev is the entry before Entries (append), the end of the snapshot (snapshot), the candidate's last entry
	// (votes), or the rejected Prev (reply).
	Prev position

	// Append and snapshot: grows with each that this server sends. Reply: the highest that the follower has received.
	Number uint64

	// Append. If Entries is empty and Last is after Prev, the driver reads the entries after Prev up to Last from disk,
	// fewer if they are more than about appendBytesMax. It drops the message if they were trimmed meanwhile.
	Entries []entry
	Last    uint64
	Commit  uint64

	Voters   []server // snapshot: as of its end. The driver fills in Prev and Voters
	Transfer uint64   // vote: term of the leader that told this candidate to campaign in the next, or 0

	// Append reply.
	Match      uint64   // durable, and equal to the leader's log, up to here
	Have       uint64   // the same, but perhaps not durable yet
	Installing bool     // a snapshot is being written
	Leaving    bool     // the sender must become neither a voter nor the leader
	Reject     bool     // the append does not fit, or is of an old term
	Hint       position // if it does not fit: the last entry that both logs may have
}

// believable reports whether a peer can have reached a term; own is the latest term known here, 0 for none.
func believable(term, own uint64) bool {
	return term <= positionMax && (own == 0 || term <= own+termJumpMax)
}

// raftConfig is fixed for the life of a raft. Durations are in ticks.
type raftConfig struct {
	self           server
	heartbeatTicks int // between two appends of an idle leader
	electionTicks  int // without a message until a leader counts as lost; several heartbeats
	stepTicks      int // that each rank waits longer than the one above it
	snapshotTicks  int // until a snapshot that was not delivered is sent again
}

// firstEntry returns what every bootstrapping server writes to its empty disk once all of them have accepted the list:
// the same first entry, in a term without a leader.
func firstEntry(voters []server) (hardState, entry) {
	return hardState{Term: 1}, entry{Index: 1, Term: 1, Kind: entryVoters, Data: encodeVoters(voters)}
}

// ready is what the outside must do now.
//
// Messages may leave at once. What waits for a write comes with a later ready.
//
// If writes reports true, the driver makes durable, in this order or in one transaction, State, Snapshot and Entries,
// and then calls persisted. Entries replace all that the log holds from the first of them on. No other ready asks for a
// write until then; ticks, messages and proposals go on. A crash in between leaves a prefix, of which nobody was told.
//
// Commit asks to apply the log up to there. It is on this server's disk, or among Entries: what a sole voter has
// written is committed. The driver applies those in the transaction that writes them, or after it.
type ready struct {
	Messages []message
	State    *hardState // nil: as before
	Snapshot *snapshot  // nil: none
	Entries  []entry
	Commit   uint64 // 0: as before
}

func (rd *ready) writes() bool { return rd.State != nil || rd.Snapshot != nil || len(rd.Entries) > 0 }

// raftStatus is the part of a raft that other goroutines may know.
type raftStatus struct {
	Leading  bool
	First    uint64 // leading: its first entry. Once that is applied, so is all that was ever committed
	Leader   server // zero: unknown
	Term     uint64
	Commit   uint64
	Last     uint64 // entry in the log
	voterSet        // in force; committed if Index <= Commit
}

// mayAct reports whether a server that has applied the log up to an index may do the leader's work: it leads, and it
// has applied everything that earlier leaders committed.
func (st raftStatus) mayAct(applied uint64) bool { return st.Leading && applied >= st.First }

type raftRole uint8

const (
	roleFollower     raftRole = iota // also learners, and servers that know of no voters
	rolePreCandidate                 // asks whether it could win an election
	roleCandidate                    // has voted for itself in its term
	roleLeader
)

// A peer is the leader's view of another voter or learner.
//
// The leader sends it one thing at a time: an append with entries, or a snapshot. That is in flight until the peer has
// it on disk or has certainly lost it. No clock decides which: the driver reports a failed delivery, or the peer
// answers an append that was sent after the delivery. So a slow link or disk causes no retransmission.
type peer struct {
	server
	match      uint64 // its log is durable and equal to ours up to here
	next       uint64 // first entry to send, at first a guess
	flight     uint64 // number of what is in flight, 0: nothing
	end        uint64 // flight: its last entry; of a snapshot only once it has arrived
	arrived    uint64 // flight: number of the last message sent when it was delivered, 0: it was not
	pause      int    // ticks until the next try, after one that was not delivered
	installing bool   // it is writing a snapshot
	kept       uint64 // the log is kept after this entry until the snapshot that it needs is installed; 0: none
	silent     int    // ticks since it answered
	commit     uint64 // commit index it was last told
	leaving    bool   // as it said last
	eligible   bool   // it has the latest list of voters, and has said since then that it is not leaving
}

// raft is one server's part in the protocol.
//
// check in cluster_test.go tests these on one value:
//
//  1. Term and vote on disk are never ahead of those in memory, and a vote is
//     not changed within its term.
//  2. base <= commit <= last: committed entries are never truncated.
//  3. Terms do not fall along the log and none is above the server's own.
//  4. tail holds exactly the entries after durable.
//  5. Voter sets are in order of the log, and the first is committed.
//  6. Only votes wait for the disk, and only until term and vote are durable.
//  7. A leader has its own vote on disk.
//  8. match < next <= last+1 for every peer, and at most one voter change is
//     not committed, none before the leader's first entry.
//
// And these hold between servers, which the simulation tests after each event:
//
//  9. At most one leader in a term.
//  10. Logs that hold the same position are equal up to there.
//  11. A committed entry stays, and is in the log of every later leader.
//  12. A candidate does not move a server that follows a working leader, or is
//     one, to another term, unless that leader told it to campaign.
type raft struct {
	cfg raftConfig // fixed after newRaft
	rnd *rand.Rand

	state    hardState // in force
	stored   hardState // on disk
	log      raftLog
	snap     *snapshot // to be installed, nil once it is
	commit   uint64    // as far as known
	applying uint64    // commit index that ready has given out: entries of a sole voter may be on their way to the disk

	role    raftRole
	leader  server // of this term, zero if unknown
	elapsed int    // ticks since the leader was heard from, a vote was given, or a round or leadership began
	timeout int    // elapsed at which to campaign, or at which a leadership transfer fails

	matched  uint64   // follower: equal to the leader's log up to here
	acked    uint64   // follower: what it told this leader
	received uint64   // follower: highest number of this leader's messages
	votes    []string // pre-candidate, candidate: ids that said yes

	// Of the leader.
	peers      []peer // other voters and learners, by name and id
	first      uint64 // its first entry
	transferee server // of a leadership transfer, zero if there is none
	sent       uint64 // number of the last append or snapshot, in whatever term

	learners []server // what setLearners said last

	// leaving: this server leaves the cluster or is about to stop. It then leads only if nobody else can. A server that
	// says so first, and then has itself removed by removeVoter, stays removed, whatever setLearners says: a leader
	// promotes only a learner that has answered with the entry of that removal on its disk, and that answer says that
	// it leaves.
	leaving bool // set by the driver
	stuck   bool // set by the driver before each tick: its writer is

	out     []message // may leave
	held    []message // may leave once state is durable
	writing bool      // a write is in progress
}

// newRaft returns a follower that continues from what is on its disk. It owns rnd from now on.
func newRaft(cfg raftConfig, disk saved, rnd *rand.Rand) *raft {
	r := &raft{cfg: cfg, rnd: rnd, state: disk.State, stored: disk.State, commit: disk.Applied, applying: disk.Applied}
	r.log = raftLog{
		base: disk.Base, runs: slices.Clone(disk.Terms), last: disk.Last, durable: disk.Last,
		voters: slices.Clone(disk.Voters),
	}
	if len(r.log.voters) == 0 {
		r.log.voters = []voterSet{{Index: disk.Applied}}
	}
	r.resetElectionTimer(r.rankWait())
	return r
}

func (r *raft) status() raftStatus {
	return raftStatus{
		Leading: r.role == roleLeader, First: r.first, Leader: r.leader, Term: r.state.Term, Commit: r.commit,
		Last: r.log.last, voterSet: r.log.latestVoters(),
	}
}

// Time

func (r *raft) tick() {
	r.elapsed++
	if r.role == roleLeader {
		r.tickLeader()
	} else if r.elapsed >= r.timeout && r.stored == r.state && !r.writerStuck() && len(r.voters()) > 0 {
		// A round ends only after term and vote are durable, or on a slow disk none would ever succeed.
		r.preCampaign()
	}
}

// writerStuck reports whether another server should lead: this one's writer is stuck, and there is another.
func (r *raft) writerStuck() bool { return r.stuck && len(r.voters()) > 1 }

func (r *raft) tickLeader() {
	for i := range r.peers {
		r.peers[i].silent++
		r.peers[i].pause = max(0, r.peers[i].pause-1)
	}
	if r.writerStuck() || !r.hasMajority(r.alive) {
		r.become(roleFollower, server{}) // thesis 6.2: clients must not wait for a leader that cannot commit
		return
	}
	if r.elapsed >= r.timeout {
		r.transferee = server{}
	}
	if r.elapsed%r.cfg.heartbeatTicks == 0 {
		for i := range r.peers {
			r.sendHeartbeat(&r.peers[i])
		}
	}
	r.changeVoters()
}

// resetElectionTimer starts a new wait for a leader.
func (r *raft) resetElectionTimer(wait int) { r.elapsed, r.timeout = 0, wait }

// rankWait is the bully rule: after the leader is lost, the first voter by name campaigns first and usually has no
// rival. The additional heartbeat gives the others time to notice the loss; until then they would vote no.
func (r *raft) rankWait() int {
	voters := r.voters()
	rank := slices.Index(voters, r.cfg.self)
	if len(voters) == 1 && rank == 0 {
		return 1 // nobody else can lead
	}
	if rank < 0 || r.leaving {
		rank = len(voters)
	}
	return r.cfg.electionTicks + r.cfg.heartbeatTicks + rank*r.cfg.stepTicks
}

// randomWait follows a round without a winner, so that rivals do not collide for ever.
func (r *raft) randomWait() int { return 2*r.cfg.heartbeatTicks + r.rnd.IntN(r.cfg.electionTicks) }

// Roles

// become enters a role in the current term and resets everything that belongs to a role.
func (r *raft) become(role raftRole, leader server) {
	r.role, r.leader = role, leader
	r.votes, r.peers, r.transferee = nil, nil, server{}
	// Every leader has all that is committed (thesis 3.6.3, leader completeness).
	r.matched, r.acked, r.received = r.commit, 0, 0
	r.resetElectionTimer(r.rankWait())
}

// enterTerm moves to a later term. It drops votes that still wait for the disk.
func (r *raft) enterTerm(term uint64, vote string, role raftRole) {
	r.state, r.held = hardState{term, vote}, nil
	r.become(role, server{})
}

// preCampaign begins an election with a pre-vote (thesis 9.6): a server that was cut off does not raise the term.
//
// A server that is not a voter, or not yet, or no longer, campaigns as well, after all others: the voters may be unable
// to go on without its log (thesis 4.2.2). It does not count itself, and steps down when that log is committed.
func (r *raft) preCampaign() {
	r.become(rolePreCandidate, server{})
	r.resetElectionTimer(r.randomWait())
	for _, v := range r.voters() {
		if v != r.cfg.self {
			r.send(message{Kind: msgPreVote, To: v, Term: r.state.Term + 1, Prev: r.log.end()})
		}
	}
	r.countVote(r.cfg.self.ID)
}

// campaign asks for votes in the next term. The requests and its own vote wait until term and vote are durable.
func (r *raft) campaign(transfer uint64) {
	r.enterTerm(r.state.Term+1, r.cfg.self.ID, roleCandidate)
	for _, v := range r.voters() {
		m := message{Kind: msgVote, To: v, Term: r.state.Term, Prev: r.log.end(), Transfer: transfer}
		if v == r.cfg.self {
			m = message{Kind: msgVoteYes, To: v, Term: r.state.Term}
		}
		r.hold(m)
	}
}

// hold sends a message as soon as term and vote are durable.
func (r *raft) hold(m message) {
	m.From = r.cfg.self
	r.held = append(r.held, m)
	if r.stored == r.state {
		r.release()
	}
}

// release sends held messages and starts a candidate's round, whose own vote is held too, addressed to itself.
func (r *raft) release() {
	held := r.held
	r.held = nil
	if r.role == roleCandidate {
		r.resetElectionTimer(r.randomWait())
	}
	for _, m := range held {
		if m.To == r.cfg.self {
			r.countVote(m.From.ID)
		} else {
			r.out = append(r.out, m)
		}
	}
}

func (r *raft) countVote(id string) {
	if !slices.Contains(r.votes, id) {
		r.votes = append(r.votes, id)
	}
	switch won := r.hasMajority(func(id string) bool { return slices.Contains(r.votes, id) }); {
	case won && r.role == rolePreCandidate:
		r.campaign(0)
	case won && r.role == roleCandidate:
		r.becomeLeader()
	}
}

// becomeLeader appends an entry of the new term, which also commits the entries of earlier leaders (thesis 3.6.2).
func (r *raft) becomeLeader() {
	r.become(roleLeader, r.cfg.self)
	r.first = r.log.last + 1
	r.append(entryNoop, nil)
	r.setPeers()
}

// Messages

// step handles one message. errMalformed and errMisdirected change nothing; others are fatal.
func (r *raft) step(m message) error {
	if err := r.validate(m); err != nil {
		return err
	}
	if m.Kind == msgPreVote || m.Kind == msgVote {
		r.stepVote(m)
		return nil
	}
	if m.Term < r.state.Term {
		if m.Kind == msgAppend || m.Kind == msgSnapshot { // an old leader steps down when it hears of the new term
			r.send(message{Kind: msgAppendReply, To: m.From, Term: r.state.Term, Prev: m.Prev, Reject: true})
		}
		return nil
	}
	if m.Term > r.state.Term && m.Kind != msgPreVoteYes { // its term has not begun
		r.enterTerm(m.Term, "", roleFollower)
	}
	// What a role has no use for comes late: a vote that was not needed, or a reply to a leader that has stepped down.
	switch leads := r.role == roleLeader; {
	case m.Kind == msgAppend || m.Kind == msgSnapshot:
		if leads {
			return errSecondLeader
		}
		return r.onLeader(m)
	case m.Kind == msgAppendReply && leads:
		r.onAppendReply(m)
	case m.Kind == msgTimeoutNow && m.From == r.leader && !r.writerStuck() && !r.leaving:
		r.campaign(m.Term)
	case m.Kind == msgPreVoteYes && r.role == rolePreCandidate && m.Term == r.state.Term+1,
		m.Kind == msgVoteYes && r.role == roleCandidate:
		r.countVote(m.From.ID)
	}
	return nil
}

// stepVote answers a vote or pre-vote request. A server answers even if it is not a voter by its own log: the
// candidate's log may have the newer list (thesis 4.1). A server with an empty disk has a new id, which is in no list.
func (r *raft) stepVote(m message) {
	leased := r.inLease(m)
	if m.Kind == msgVote && m.Term > r.state.Term && !leased {
		r.enterTerm(m.Term, "", roleFollower)
	}
	switch {
	case leased || !r.mayVote(m) || !r.upToDate(m.Prev):
		r.send(message{Kind: msgVoteNo, To: m.From, Term: r.state.Term})
	case m.Kind == msgPreVote:
		r.send(message{Kind: msgPreVoteYes, To: m.From, Term: m.Term})
	default:
		r.state.Vote = m.From.ID
		r.become(roleFollower, server{})
		r.hold(message{Kind: msgVoteYes, To: m.From, Term: m.Term})
	}
}

// inLease reports whether the leader's lease keeps this server from voting (thesis 4.2.3). A leadership transfer lifts
// the lease, but only for the transferee and for the next term.
func (r *raft) inLease(m message) bool {
	if m.Kind == msgVote && m.Transfer != 0 && m.Transfer+1 == m.Term {
		return false
	}
	return r.role == roleLeader || r.leader != server{} && r.elapsed < r.cfg.electionTicks
}

// mayVote allows one vote in a term, and none in a term whose leader is known.
func (r *raft) mayVote(m message) bool {
	if m.Kind == msgPreVote {
		return m.Term > r.state.Term
	}
	return m.Term == r.state.Term && r.leader == server{} && (r.state.Vote == "" || r.state.Vote == m.From.ID)
}

// upToDate is the election restriction (thesis 3.6.1): a leader must have all that is committed.
func (r *raft) upToDate(last position) bool {
	own := r.log.end()
	return last.Term > own.Term || last.Term == own.Term && last.Index >= own.Index
}

// Followers

// onLeader follows a leader of this term, as a candidate does too, and handles what it has sent.
func (r *raft) onLeader(m message) error {
	if r.role != roleFollower || r.leader != m.From {
		r.become(roleFollower, m.From)
	}
	r.resetElectionTimer(r.rankWait())
	if m.Kind == msgSnapshot {
		r.onSnapshot(m)
		return nil
	}
	return r.onAppend(m)
}

// onAppend handles a heartbeat or entries. It truncates only what contradicts them: a late append undoes no newer one.
func (r *raft) onAppend(m message) error {
	if m.Prev.Index > r.commit && !r.log.has(m.Prev) {
		no := r.reply()
		no.Reject, no.Number, no.Prev, no.Hint = true, m.Number, m.Prev, r.log.lastCommon(m.Prev)
		r.send(no)
		return nil
	}
	r.received = max(r.received, m.Number)
	for _, e := range m.Entries {
		switch {
		case r.log.term(e.Index) == e.Term || e.Index <= r.log.base.Index:
		case e.Index <= max(r.commit, r.applying):
			return errBrokenHistory
		default:
			r.log.add(e)
		}
	}
	r.matched = max(r.matched, m.Prev.Index+uint64(len(m.Entries)))
	r.commitTo(min(m.Commit, r.matched))
	// A heartbeat is answered from memory, so a slow disk causes no election.
	if len(m.Entries) == 0 || r.matched <= r.log.durable {
		r.ack()
	}
	return nil
}

// onSnapshot has a snapshot installed if it is newer than what is committed here. If the log holds its last entry, that
// prefix becomes committed instead. One that arrives during an installation is ignored, or a slow disk would never
// finish.
func (r *raft) onSnapshot(m message) {
	r.received = max(r.received, m.Number)
	switch {
	case m.Prev.Index <= max(r.commit, r.applying), r.snap != nil:
	case r.log.has(m.Prev):
		r.commitTo(m.Prev.Index)
	default:
		r.snap = &snapshot{m.Prev, m.Voters}
		last := m.Prev.Index
		r.log = raftLog{base: m.Prev, last: last, durable: last, voters: []voterSet{{last, m.Voters}}}
		r.commit = last
	}
	r.matched = max(r.matched, r.commit)
	r.ack()
}

// ackable returns how far this log is durable and equal to the leader's.
func (r *raft) ackable() uint64 {
	if r.snap != nil {
		return 0
	}
	return min(r.matched, r.log.durable)
}

func (r *raft) ack() {
	r.acked = r.ackable()
	r.send(r.reply())
}

// reply tells the leader the state of this log.
func (r *raft) reply() message {
	return message{Kind: msgAppendReply, To: r.leader, Term: r.state.Term, Number: r.received,
		Match: r.ackable(), Have: r.matched, Installing: r.snap != nil, Leaving: r.leaving}
}

// Leader

// propose appends commands, in order and without gaps, and returns the index of the first. They are committed when a
// status of the same term says so; after a change of term only the log tells. After errNotLeader and errBusy none was
// appended. The raft owns the data from now on.
func (r *raft) propose(data ...[]byte) (first uint64, err error) {
	switch {
	case r.role != roleLeader:
		return 0, errNotLeader
	case r.transferee != (server{}) || r.log.last-r.commit >= backlogEntriesMax || r.log.tailBytes >= backlogBytesMax:
		return 0, errBusy
	}
	first = r.log.last + 1
	for _, d := range data {
		r.append(entryCommand, d)
	}
	return first, nil
}

func (r *raft) append(kind entryKind, data []byte) {
	r.log.add(entry{r.log.last + 1, r.state.Term, kind, data})
}

// sendAppends sends each peer that has nothing in flight what it lacks, so that all later proposals go into the next
// append. A peer that does not answer gets only heartbeats.
func (r *raft) sendAppends() {
	for i := range r.peers {
		switch p := &r.peers[i]; {
		case p.flight != 0 || p.pause > 0 || !r.alive(p.ID):
		case p.next <= r.log.base.Index:
			p.kept = r.log.base.Index
			if !p.installing {
				r.sendInFlight(p, message{Kind: msgSnapshot, To: p.server, Term: r.state.Term}, math.MaxUint64)
			}
		case p.next <= r.log.last:
			p.kept = 0
			r.sendEntries(p)
		case p.commit < r.commit:
			r.sendHeartbeat(p)
		}
	}
}

// sendInFlight sends a message and records it as in flight; end is its last entry.
func (r *raft) sendInFlight(p *peer, m message, end uint64) {
	r.send(m)
	p.flight, p.end, p.arrived = r.sent, end, 0
}

// sendEntries takes entries that are not yet on this server's disk from memory, because followers write at the same
// time as the leader (thesis 10.2.1). The driver reads the others from disk.
func (r *raft) sendEntries(p *peer) {
	m := message{Kind: msgAppend, To: p.server, Term: r.state.Term, Commit: r.commit}
	m.Prev = position{p.next - 1, r.log.term(p.next - 1)}
	if p.next > r.log.durable {
		m.Entries = firstEntries(r.log.tail[p.next-r.log.durable-1:])
		m.Last = m.Prev.Index + uint64(len(m.Entries))
	} else {
		m.Last = min(r.log.durable, m.Prev.Index+appendEntriesMax)
	}
	p.commit = r.commit
	r.sendInFlight(p, m, m.Last)
}

// firstEntries returns as many entries as one append may carry, at least one.
func firstEntries(list []entry) []entry {
	n, size := 1, len(list[0].Data)
	for n < min(len(list), appendEntriesMax) && size+len(list[n].Data) <= appendBytesMax {
		size += len(list[n].Data)
		n++
	}
	return list[:n:n]
}

// sendHeartbeat sends an append without entries after what is known to match, so that it is never rejected.
func (r *raft) sendHeartbeat(p *peer) {
	m := message{Kind: msgAppend, To: p.server, Term: r.state.Term, Commit: r.commit}
	if p.match >= r.log.base.Index {
		m.Prev = position{p.match, r.log.term(p.match)}
	}
	m.Last = m.Prev.Index
	p.commit = r.commit
	r.send(m)
}

func (r *raft) onAppendReply(m message) {
	p := r.peer(m.From.ID)
	if p == nil {
		return
	}
	p.silent, p.leaving = 0, m.Leaving
	if m.Match >= r.log.latestVoters().Index && m.Match <= r.log.last {
		p.eligible = !m.Leaving
	}
	p.installing = m.Installing
	switch {
	case m.Reject && m.Number == p.flight && m.Prev.Index > p.match:
		// The hint skips a whole run of terms at a time (thesis 3.5).
		p.next = max(p.match, r.log.lastCommon(m.Hint).Index) + 1
		p.kept, p.flight = 0, 0
	case m.Match > p.match && m.Match <= r.log.last:
		p.kept, p.match, p.next = 0, m.Match, m.Match+1
		r.endFlight(p)
		r.maybeCommit()
	case !m.Reject && p.arrived != 0 && m.Number > p.arrived && m.Have < p.end && !m.Installing:
		p.kept, p.flight = 0, 0 // delivered, but the peer does not have it: it was restarted
	}
	r.sendTimeoutNow()
	r.changeVoters()
}

// maybeCommit commits what a majority has on disk, if it is of this leader's own term: an older entry can be on a
// majority and still be overwritten (thesis 3.6.2, figure 3.7).
func (r *raft) maybeCommit() {
	var copies []uint64
	voters := r.voters()
	for _, v := range voters {
		n := r.log.durable
		if v != r.cfg.self {
			n = r.peer(v.ID).match
		}
		copies = append(copies, n)
	}
	slices.Sort(copies)
	n := copies[len(copies)-majority(len(voters))]
	if n > r.commit && r.log.term(n) == r.state.Term {
		r.commitTo(n)
	}
}

// commitTo raises the commit index. A leader steps down once a list of voters without it is committed (thesis 4.2.2).
func (r *raft) commitTo(index uint64) {
	if index <= r.commit {
		return
	}
	r.commit = index
	for len(r.log.voters) > 1 && r.log.voters[1].Index <= index { // the first has been replaced
		r.log.voters = slices.Delete(r.log.voters, 0, 1)
	}
	if r.role == roleLeader && !r.isVoter(r.cfg.self.ID) && r.log.latestVoters().Index <= index {
		r.become(roleFollower, server{})
	}
}

// needed returns the first entry that a live peer still needs, 0 if there is none. For a peer that waits for a snapshot
// it is the first entry after the log's base at that time, because the snapshot will end at a later entry.
func (r *raft) needed() (first uint64) {
	for _, p := range r.peers {
		n := p.match + 1
		if p.kept != 0 {
			n = p.kept + 1
		}
		underway := p.flight != 0 && p.arrived == 0 // else a peer may have died before it answered
		if (underway || p.silent < r.cfg.snapshotTicks) && (first == 0 || n < first) {
			first = n
		}
	}
	return first
}

// endFlight ends a flight whose last entry the peer has on disk.
func (r *raft) endFlight(p *peer) {
	if p.match >= p.end {
		p.flight, p.arrived = 0, 0
	}
}

// delivered says that the peer's driver has received an append with entries, up to entry end, or a snapshot that ends
// there. The leader's driver calls either this or undelivered once for each of them.
func (r *raft) delivered(id string, number, end uint64) {
	if p := r.inFlight(id, number); p != nil {
		p.arrived, p.end = r.sent, end
		r.endFlight(p)
	}
}

// undelivered says that an append with entries or a snapshot was not delivered, as far as the driver knows. A snapshot
// is expensive and whatever blocked it may persist, so the next try comes later.
func (r *raft) undelivered(id string, number uint64) {
	p := r.inFlight(id, number)
	if p == nil {
		return
	}
	p.flight, p.pause = 0, r.cfg.heartbeatTicks
	if p.kept != 0 {
		p.pause = r.cfg.snapshotTicks
	}
}

// inFlight returns the peer for which that number is in flight, or nil.
func (r *raft) inFlight(id string, number uint64) *peer {
	if p := r.peer(id); p != nil && number != 0 && p.flight == number {
		return p
	}
	return nil
}

// transfer begins a leadership transfer to the voter with the most of the log (thesis 3.10). Proposals are refused
// until another server leads or an election timeout has passed. errBusy: no other live voter can lead.
func (r *raft) transfer() error {
	if r.role != roleLeader {
		return errNotLeader
	}
	transferee := r.bestVoter()
	if transferee == nil {
		return errBusy
	}
	r.transferee, r.timeout = transferee.server, r.elapsed+r.cfg.electionTicks
	r.sendTimeoutNow()
	return nil
}

// sendTimeoutNow tells the transferee to campaign once it has the whole log.
func (r *raft) sendTimeoutNow() {
	if p := r.peer(r.transferee.ID); p != nil && p.match == r.log.last {
		r.send(message{Kind: msgTimeoutNow, To: p.server, Term: r.state.Term})
	}
}

// bestVoter returns the live voter, other than this server, with the most of the log; the first by name among equals.
// It skips voters that are leaving, which would only transfer leadership again.
func (r *raft) bestVoter() *peer {
	var best *peer
	for i := range r.peers {
		p := &r.peers[i]
		if r.isVoter(p.ID) && r.alive(p.ID) && !p.leaving && (best == nil || p.match > best.match) {
			best = p
		}
	}
	return best
}

// Voters

func majority(n int) int { return n/2 + 1 }

// voters are those named last in the log, committed or not (thesis 4.1).
func (r *raft) voters() []server { return r.log.latestVoters().Voters }

func (r *raft) isVoter(id string) bool {
	return slices.ContainsFunc(r.voters(), func(v server) bool { return v.ID == id })
}

// hasMajority counts voters only: a learner, a removed server or a new disk under an old name does not count.
func (r *raft) hasMajority(yes func(id string) bool) bool {
	n, voters := 0, r.voters()
	for _, v := range voters {
		if yes(v.ID) {
			n++
		}
	}
	return n >= majority(len(voters))
}

func (r *raft) peer(id string) *peer {
	for i := range r.peers {
		if r.peers[i].ID == id {
			return &r.peers[i]
		}
	}
	return nil
}

// alive reports whether a server answered this leader within an election timeout.
func (r *raft) alive(id string) bool {
	p := r.peer(id)
	return id == r.cfg.self.ID || p != nil && p.silent < r.cfg.electionTicks
}

// setPeers makes peers of the current voters and learners.
func (r *raft) setPeers() {
	var peers []peer
	for _, s := range slices.Concat(r.voters(), r.learners) {
		same := func(p peer) bool { return p.ID == s.ID }
		if s.ID == r.cfg.self.ID || slices.ContainsFunc(peers, same) {
			continue
		}
		if p := r.peer(s.ID); p != nil {
			peers = append(peers, *p)
		} else {
			peers = append(peers, peer{server: s, next: r.log.last}) // a guess that the reply corrects
		}
	}
	slices.SortFunc(peers, func(a, b peer) int { return compareServers(a.server, b.server) })
	r.peers = peers
}

// setLearners says which servers want to be voters: those that are alive and not leaving, according to the members.
// Voters in the list have no effect. It may be called at any time in any role; the leader promotes learners as they
// catch up.
func (r *raft) setLearners(list []server) {
	r.learners = slices.SortedFunc(slices.Values(list), compareServers)
	if r.role == roleLeader {
		r.setPeers()
	}
}

// changeVoters makes a learner that has caught up a voter. A dead voter of its name is removed first, which takes a
// change of its own. What a sole voter writes as committed is so before there is another.
func (r *raft) changeVoters() {
	if !r.mayChangeVoters() || r.applying > r.commit {
		return
	}
	voters := r.voters()
	for _, s := range r.learners {
		if r.isVoter(s.ID) || !r.caughtUp(s.ID) || !r.peer(s.ID).eligible {
			continue
		}
		switch i := slices.IndexFunc(voters, func(v server) bool { return v.Name == s.Name }); {
		case i < 0:
			r.appendVoters(append(slices.Clone(voters), s))
			return
		case !r.alive(voters[i].ID):
			r.appendVoters(slices.Delete(slices.Clone(voters), i, i+1))
			return
		}
	}
}

// mayChangeVoters: the majorities of two lists share a server only if the lists differ by one (thesis 4.1), so the last
// change must be committed. An entry of this term must be committed too, or a change of an earlier leader could still
// come between (Ongaro on raft-dev, 10 July 2015).
func (r *raft) mayChangeVoters() bool {
	leads := r.role == roleLeader && r.transferee == server{}
	return leads && r.commit >= r.first && r.commit >= r.log.latestVoters().Index
}

// caughtUp: a learner is at most one append behind, or the cluster might stop until it has the log (thesis 4.2.1).
func (r *raft) caughtUp(id string) bool {
	p := r.peer(id)
	return p != nil && r.alive(id) && p.match >= r.first && p.match+appendEntriesMax >= r.commit
}

// removeVoter begins to remove a voter. The removal is done when the entry at index is committed in this term. The
// entry is written even if the server is not a voter, because the leader may know it as a learner. A leader may remove
// itself: it steps down once the entry is committed. errBusy: another change is in progress; try later.
func (r *raft) removeVoter(id string) (index uint64, err error) {
	voters := r.voters()
	switch {
	case r.role != roleLeader:
		return 0, errNotLeader
	case len(voters) == 1 && r.isVoter(id):
		return 0, errLastVoter
	case !r.mayChangeVoters():
		return 0, errBusy
	}
	r.appendVoters(slices.DeleteFunc(slices.Clone(voters), func(v server) bool { return v.ID == id }))
	return r.log.last, nil
}

func (r *raft) appendVoters(list []server) {
	r.append(entryVoters, encodeVoters(list))
	r.setPeers()
	for i := range r.peers {
		r.peers[i].eligible = false
	}
}

// The disk

// ready says what the outside must do now; ok is false if that is nothing. Call it again after each tick, step, propose
// or persisted, best when a batch of them is done: what has gathered goes in one write and one append.
func (r *raft) ready() (rd ready, ok bool) {
	if r.role == roleLeader {
		r.sendAppends()
	}
	if !r.writing {
		if r.state != r.stored {
			state := r.state
			rd.State = &state
		}
		rd.Snapshot, rd.Entries = r.snap, slices.Clip(r.log.tail)
		r.writing = rd.writes()
	}
	commit := min(r.commit, r.log.durable)
	if len(rd.Entries) > 0 && r.role == roleLeader && slices.Equal(r.voters(), []server{r.cfg.self}) {
		commit = r.log.last
	}
	if r.snap == nil && commit > r.applying {
		r.applying, rd.Commit = commit, commit
	}
	rd.Messages, r.out = r.out, nil
	return rd, rd.writes() || rd.Commit > 0 || len(rd.Messages) > 0
}

// persisted says that the write of rd is durable. Only now does it count: for the votes that waited for it, for the
// leader's own copy, for the follower's answer.
func (r *raft) persisted(rd ready) {
	r.writing = false
	if rd.State != nil {
		r.stored = *rd.State
	}
	if rd.Snapshot != nil {
		r.applying = max(r.applying, r.snap.Index)
		r.snap = nil
	}
	// A snapshot that arrived meanwhile will replace the log that was written.
	if r.snap == nil {
		r.log.persisted(rd.Entries)
	}
	r.commitTo(rd.Commit) // by a sole voter, even if it leads no more
	if r.stored == r.state {
		r.release()
	}
	if r.role == roleLeader {
		r.maybeCommit()
		r.changeVoters()
	} else if r.leader != (server{}) && r.ackable() > r.acked {
		r.ack()
	}
}

func (r *raft) send(m message) {
	if m.From = r.cfg.self; m.Kind == msgAppend || m.Kind == msgSnapshot {
		r.sent++
		m.Number = r.sent
	}
	r.out = append(r.out, m)
}

// validate rejects messages that no correct server of this cluster sends to this one.
func (r *raft) validate(m message) error {
	own := r.state.Term
	if r.log.last == 0 {
		own = 0 // a new server takes the cluster's term, whatever it is
	}
	switch {
	case m.To != r.cfg.self:
		return errMisdirected
	case m.From.ID == "" || m.From.ID == r.cfg.self.ID || m.Kind < msgPreVote || m.Kind > msgTimeoutNow || m.Term == 0,
		!believable(m.Term, own) || m.Prev.Index > positionMax,
		(m.Kind == msgAppend || m.Kind == msgSnapshot) &&
			(m.Prev.Term > m.Term || (m.Prev.Term == 0) != (m.Prev.Index == 0)):
		return errMalformed
	}
	last := m.Prev
	for _, e := range m.Entries {
		if e.Index != last.Index+1 || e.Term == 0 || e.Term < last.Term || e.Term > m.Term {
			return errMalformed
		}
		if e.Kind == entryVoters {
			if _, err := decodeVoters(e.Data); err != nil {
				return err
			}
		}
		last = position{e.Index, e.Term}
	}
	if m.Kind == msgSnapshot {
		return checkVoters(m.Voters)
	}
	return nil
}

// raftLog is what the protocol remembers of the log: where terms begin, which entries name voters, and the entries that
// are not on disk yet. Its size depends on the number of terms and on work in progress, not on the log.
type raftLog struct {
	base      position   // last entry that was dropped; zero: none
	runs      []position // first entry of each run of equal terms after base
	last      uint64     // last entry
	durable   uint64     // last entry on disk
	tail      []entry    // the entries after durable
	tailBytes int        // of their data
	voters    []voterSet // the committed set, then the uncommitted ones
}

func (l *raftLog) end() position { return position{l.last, l.term(l.last)} }

// term returns the term of the entry at index, 0 if that is not in the log.
func (l *raftLog) term(index uint64) uint64 {
	switch {
	case index == l.base.Index:
		return l.base.Term
	case index < l.base.Index || index > l.last:
		return 0
	}
	n := sort.Search(len(l.runs), func(n int) bool { return l.runs[n].Index > index })
	return l.runs[n-1].Term
}

// has reports whether the entry at p is known to be in the log. An entry that was dropped is not known.
func (l *raftLog) has(p position) bool { return p.Index <= l.last && l.term(p.Index) == p.Term }

// lastCommon returns the highest position that is not above p in index or term. If another log holds p, the two logs
// can share nothing after that position. Before base the term is unknown, and 0.
func (l *raftLog) lastCommon(p position) position {
	index := min(p.Index, l.last)
	for _, run := range slices.Backward(l.runs) {
		if run.Index > index {
			continue
		}
		if run.Term <= p.Term {
			return position{index, run.Term}
		}
		index = run.Index - 1
	}
	if index == l.base.Index && l.base.Term > p.Term {
		index--
	}
	return position{index, l.term(index)}
}

// add puts e at its index, at most one after the last entry, and truncates what was there.
func (l *raftLog) add(e entry) {
	if e.Index <= l.last {
		l.truncate(e.Index)
	}
	if e.Term != l.term(l.last) || len(l.runs) == 0 {
		l.runs = append(l.runs, position{e.Index, e.Term})
	}
	l.last = e.Index
	l.tail = append(l.tail, e)
	l.tailBytes += len(e.Data)
	if e.Kind == entryVoters {
		voters, err := decodeVoters(e.Data)
		if err != nil {
			panic(err) // validate accepted it, or appendVoters made it
		}
		l.voters = append(l.voters, voterSet{e.Index, voters})
	}
}

// truncate removes the entries from index on. The disk may have some until they are overwritten.
func (l *raftLog) truncate(index uint64) {
	l.last = index - 1
	if l.durable > l.last {
		l.durable = l.last
		l.tail = nil
	}
	l.setTail(slices.Clip(l.tail[:l.last-l.durable])) // a write may own the rest
	l.runs = slices.DeleteFunc(l.runs, func(run position) bool { return run.Index >= index })
	l.voters = slices.DeleteFunc(l.voters, func(v voterSet) bool { return v.Index >= index })
}

// persisted records which of the written entries the log still holds: those up to the last one with the right term.
func (l *raftLog) persisted(written []entry) {
	for _, e := range slices.Backward(written) {
		if e.Index > l.durable && l.term(e.Index) == e.Term {
			l.setTail(slices.Clone(l.tail[e.Index-l.durable:])) // frees the data
			l.durable = e.Index
			return
		}
	}
}

func (l *raftLog) setTail(tail []entry) {
	l.tail, l.tailBytes = tail, 0
	for _, e := range tail {
		l.tailBytes += len(e.Data)
	}
}

// compact says that the driver has dropped the log up to index, which is applied.
func (l *raftLog) compact(index uint64) {
	if index <= l.base.Index {
		return
	}
	l.base = position{index, l.term(index)}
	n := sort.Search(len(l.runs), func(n int) bool { return l.runs[n].Index > index })
	if index < l.last && (n == len(l.runs) || l.runs[n].Index > index+1) {
		n--
		l.runs[n].Index = index + 1
	}
	l.runs = slices.Delete(l.runs, 0, n)
}

func (l *raftLog) latestVoters() voterSet { return l.voters[len(l.voters)-1] }

// The driver: the goroutine that owns the value

const (
	tickTime       = 20 * time.Millisecond // of the protocol, times --raft-multiplier
	heartbeatTicks = 5                     // 100 ms
	electionTicks  = 25                    // 500 ms
	stepTicks      = 5                     // the second in rank campaigns 100 ms after the first
	snapshotTicks  = 500                   // 10 s
	gatherMax      = 1_000                 // events in a round of the driver
	removalPause   = 50 * time.Millisecond // between checks whether a voter is removed
	stuckAfter     = 4 * time.Second       // without progress until /health reports it: within five seconds
)

var (
	errUnknown  = errors.New("nobody can tell whether the write was done; repeat it with the same Idempotency-Key")
	errTooLarge = fmt.Errorf("the change is larger than %d bytes; make it smaller", commandBytesMax)

	// Of removePeer.
	errAliveVoter = errors.New("that server is alive and would become a voter again: let it leave with " +
		"\"belfry leave\", or stop it first")
	errNoServer = errors.New("no such server; \"belfry raft list-peers\" shows their ids")
)

// A proposal is a command in progress, and the channel on which its caller waits.
type proposal struct {
	data  []byte
	since time.Time    // when the protocol was given it
	index uint64       // in the log, once it is appended
	done  chan applied // holds one; its Err says why the command was not applied
}

// leaderWork is what a server does while it leads, and what it learns of the log: the scheduler.
type leaderWork interface {
	// lead works for one term, until ctx ends. Its error ends the server.
	lead(ctx context.Context, term uint64) error
	// noteApplied is told what was applied, before callers of propose are. It must not block.
	noteApplied(...applied)
	// report records results, and returns the executions whose results are recorded.
	report(ctx context.Context, results []result) (taken []int64, err error)
}

// cluster drives the protocol on a server. Only run may call the methods that use what it owns; any goroutine the rest.
type cluster struct {
	plane      *plane
	store      *store
	log        *slog.Logger
	work       leaderWork
	tickTime   time.Duration
	events     chan func() error               // that run executes, see post
	stopped    chan struct{}                   // closed when run takes no more events
	leaderTerm atomic.Uint64                   // in which this server leads, 0: it does not
	leaderCtx  atomic.Pointer[context.Context] // of the latest leader's work; nil: there was none
	view       atomic.Pointer[raftStatus]
	progress   atomic.Pointer[progress]
	children   errgroup.Group // a write, the calls on links, the leader's work

	// Owned by run.
	raft         *raft
	waiting      []*proposal              // appended, in order of their indexes
	waitingBytes int                      // of their data
	awaited      map[chan struct{}]uint64 // closed when this index is applied
	queued       []ready                  // for the disk, in order; the first is being written
	turn         uint64                   // of the store, in the last tick
	turnAge      int                      // ticks since then, or since there is something to write
	applied      uint64
	stopLeader   context.CancelFunc // ends the leader's work; nil: there is none
	links        map[linkKey][]message
	snapshot     string    // the file of raft.snap
	committed    uint64    // when the commit index was looked at last
	writing      time.Time // when the write of the first of queued began
	stuck        string    // the problem logged last
}

// progress says since when each kind of the driver's work has been waiting; zero times: there is none.
type progress struct{ round, write, proposal, commit time.Time }

// problem says in a sentence what has made no progress for too long, "" if nothing has.
func (p progress) problem(now time.Time) string {
	stuck := func(since time.Time) bool { return !since.IsZero() && now.Sub(since) > stuckAfter }
	switch {
	case stuck(p.round):
		return "this server makes no progress: look at the load of the machine, and restart the server if it stays so"
	case stuck(p.write):
		return "a write of this server to its disk does not end: look at the disk"
	case stuck(p.commit):
		return "writes wait for this leader, because too few servers store them: look at the disks of the servers, " +
			"and whether large messages pass between them"
	case stuck(p.proposal):
		return "a write waits for this leader although others are done: restart the server, so that another leads"
	}
	return ""
}

// newCluster returns a driver for the server whose disk s is. tick is one unit of the protocol's time.
func newCluster(p *plane, s *store, tick time.Duration, work leaderWork) (*cluster, error) {
	own, err := s.own()
	if err != nil {
		return nil, err
	}
	disk, err := s.saved()
	if err != nil {
		return nil, err
	}
	self := server{p.cfg.Name, own.ID}
	for _, v := range disk.Voters[len(disk.Voters)-1].Voters {
		if v.ID == self.ID && v.Name != self.Name {
			return nil, fmt.Errorf("--node-name: this data directory belongs to %q; start it under that name", v.Name)
		}
	}
	if err := removeSnapshots(p.cfg.Dir); err != nil {
		return nil, err
	}
	c := &cluster{
		plane: p, store: s, log: p.log, work: work, tickTime: tick, applied: disk.Applied,
		events: make(chan func() error), stopped: make(chan struct{}),
		links: map[linkKey][]message{}, awaited: map[chan struct{}]uint64{},
	}
	c.raft = c.newRaft(self, disk)
	c.publish()
	c.progress.Store(&progress{})
	p.server = c
	p.setOwn(func(r *record) {
		r.Format, r.Cluster, r.Accepted, r.Empty = s.format, own.Cluster, own.Accepted, own.Empty
	})
	return c, nil
}

func (c *cluster) newRaft(self server, disk saved) *raft {
	cfg := raftConfig{self, heartbeatTicks, electionTicks, stepTicks, snapshotTicks}
	chance := c.plane.cfg.network.chance
	return newRaft(cfg, disk, rand.New(rand.NewPCG(chance(), chance())))
}

func (c *cluster) electionTime() time.Duration { return electionTicks * c.tickTime }

// leading reports whether this server leads and has applied everything that earlier leaders committed.
func (c *cluster) leading() bool { return c.leaderTerm.Load() != 0 }

// leaderContext is the context for calls in the leader's name. It ends with this server's leadership.
func (c *cluster) leaderContext() context.Context {
	if ctx := c.leaderCtx.Load(); ctx != nil {
		return *ctx
	}
	return context.Background()
}

// status is as of the last round of run. It must not be changed.
func (c *cluster) status() raftStatus { return *c.view.Load() }

// propose has a command logged, committed and applied, and returns the result of applying it; a rejection by apply is
// an error too. errNotLeader and errBusy: it was not appended. errUnknown: its fate is unknown.
func (c *cluster) propose(ctx context.Context, cmd *command) (applied, error) {
	data, err := cmd.encode()
	switch {
	case err != nil:
		return applied{}, err
	case len(data) > commandBytesMax:
		return applied{}, errTooLarge
	case !c.leading():
		return applied{}, errNotLeader
	}
	data[0] = c.format()
	p := &proposal{data: data, done: make(chan applied, 1)}
	if err = c.post(ctx, func() error { c.append(p); return nil }); err != nil {
		if errors.Is(err, errStopping) {
			err = errNotLeader
		}
		return applied{}, err
	}
	select {
	case a := <-p.done:
		return a, a.Err
	case <-ctx.Done():
		return applied{}, ctx.Err()
	}
}

// nodes are those that can be given executions.
func (c *cluster) nodes() []node { return c.plane.nodes() }

// start gives a node, perhaps this one, its orders. No call to a node outlasts this server's leadership. After an error
// that wraps errRefused the node has certainly started none; after another it may have.
func (c *cluster) start(node string, d dispatch) error {
	_, err := callNode(c.leaderContext(), c.plane, node, pathDispatch, d, c.plane.start)
	return err
}

func (c *cluster) ask(node string, q question) (answer, error) {
	a, err := callNode(c.leaderContext(), c.plane, node, "/question", q, c.plane.ask)
	if err == nil {
		err = checkResults(a.Held)
	}
	return a, err
}

func (c *cluster) end(node string, k kill) error {
	_, err := callNode(c.leaderContext(), c.plane, node, "/kill", k, c.plane.kill)
	return err
}

// left reports whether a node said that it is leaving or has left, which is no failure.
func (c *cluster) left(node string) bool {
	return slices.ContainsFunc(c.plane.all(), func(m contact) bool {
		return m.Name == node && (m.Status == memberLeaving || m.Status == memberLeft)
	})
}

// conditions returns what is wrong with the cluster, by event; "": nothing.
func (c *cluster) conditions() map[string]string {
	voters, missing := c.voting()
	spare := len(voters) - len(missing) - majority(len(voters))
	dir := c.plane.cfg.Dir
	free, size := disk(dir)
	all := map[string]string{eventDisk: diskShort.problem(dir, free, size), eventClock: c.plane.clockProblem()}
	if len(voters) > 2 && spare <= 0 {
		all[eventNoSpare] = fmt.Sprintf("%d of %d voters are there; if one more fails, nothing is scheduled",
			majority(len(voters))+spare, len(voters))
	}
	return all
}

// format returns the latest format of commands that every voter is known to apply. A voter would stop at a later one.
func (c *cluster) format() byte {
	format := c.store.format
	for _, v := range c.status().Voters {
		if v.ID != c.plane.cfg.ID {
			r, _ := c.plane.byID(v.ID)
			format = min(format, max(r.Format, 1))
		}
	}
	return format
}

// waitApplied returns once this server has applied the log up to index: then its clients read their writes here.
func (c *cluster) waitApplied(ctx context.Context, index uint64) error {
	if c.store.applied.Load() >= index {
		return nil
	}
	done := make(chan struct{})
	if err := c.post(ctx, func() error { c.awaited[done] = index; c.release(); return nil }); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		c.post(context.Background(), func() error { delete(c.awaited, done); return nil }) // or run has ended
		return ctx.Err()
	case <-c.stopped:
		return errStopping
	}
}

// release ends the waits for what is applied now.
func (c *cluster) release() {
	for done, index := range c.awaited {
		if index <= c.applied {
			close(done)
			delete(c.awaited, done)
		}
	}
}

// post sends run an event, which run executes between two others. If the event returns an error, run ends with it. An
// error of post says that the event is not executed.
func (c *cluster) post(ctx context.Context, event func() error) error {
	select {
	case c.events <- event:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.stopped:
		return errStopping
	}
}

// call has run execute fn, and waits for it.
func (c *cluster) call(ctx context.Context, fn func()) error {
	done := make(chan struct{})
	err := c.post(ctx, func() error { fn(); close(done); return nil })
	if err == nil {
		<-done
	}
	return err
}

// transferLeadership returns nil once another server leads, or if this one did not lead. If no server has taken over
// within an election timeout, that is an error, and this server continues to lead.
func (c *cluster) transferLeadership(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.electionTime())
	defer cancel()
	var err error
	if err := c.call(ctx, func() { err = c.raft.transfer() }); err != nil {
		return err
	}
	for err == nil {
		if st := c.status(); !st.Leading && st.Leader != (server{}) {
			return nil
		}
		err = pause(ctx, c.tickTime)
	}
	if errors.Is(err, errNotLeader) {
		return nil
	}
	return fmt.Errorf("leadership was not handed over: %w", err)
}

// removeVoter returns nil once it is committed that the server with that id is not a voter. errNotLeader: ask the
// leader. After any other error the removal may still be committed.
func (c *cluster) removeVoter(ctx context.Context, id string) error {
	var index, term uint64 // of the entry
	for {
		var st raftStatus
		var err error
		look := func() {
			if st = c.raft.status(); st.Term != term {
				index, term = 0, st.Term
			}
			if index == 0 {
				index, err = c.raft.removeVoter(id)
			}
		}
		if err := c.call(ctx, look); err != nil {
			return err
		}
		switch {
		case index != 0 && index <= st.Commit:
			return nil
		case err != nil && !errors.Is(err, errBusy):
			return err
		}
		if err := pause(ctx, removalPause); err != nil {
			return err
		}
	}
}

// setLeaving tells the protocol whether this server is leaving or about to stop.
func (c *cluster) setLeaving(ctx context.Context, leaving bool) error {
	return c.call(ctx, func() { c.raft.leaving = leaving })
}

// pause waits for d, or returns ctx's error.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run drives the protocol until ctx ends, or the disk or the leader's work fails. Each propose gets an answer.
func (c *cluster) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	err := c.drive(ctx)
	close(c.stopped)
	c.progress.Store(&progress{})
	cancel()
	c.stopLeading()
	return errors.Join(err, c.children.Wait(), removeSnapshots(c.plane.cfg.Dir))
}

// drive is the loop of run. Events that arrive during one round share the next write and append.
func (c *cluster) drive(ctx context.Context) error {
	ticker := time.NewTicker(c.tickTime)
	defer ticker.Stop()
	for awake := time.Now(); ; {
		var event func() error
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			event = c.tick
		case event = <-c.events:
		}
		awake = c.noticePause(awake, time.Now())
		c.noticeStuck(awake)
		for n := 1; event != nil; n++ {
			if err := event(); err != nil {
				return err
			}
			if event = nil; n < gatherMax { // what is taken from events is executed
				select {
				case event = <-c.events:
				default:
				}
			}
		}
		c.publish()
		if rd, ok := c.raft.ready(); ok {
			c.send(ctx, rd.Messages)
			c.save(rd)
		}
		c.updateLeadership(ctx)
	}
}

// noticePause tells the protocol if the loop stood still for an election timeout. Nobody replaces a sole voter.
func (c *cluster) noticePause(last, now time.Time) time.Time {
	if gap := stoodStill(last, now, c.electionTime()); gap > 0 && len(c.raft.status().Voters) > 1 {
		c.log.Warn("this server was paused; it waits for the leader again", "gap", gap)
		c.raft.become(roleFollower, server{}) // its view of the others is out of date
	}
	return now
}

// noticeStuck records since when work has made no progress: a disk may hang, or large messages may not arrive.
func (c *cluster) noticeStuck(now time.Time) {
	st := c.raft.status()
	p := progress{round: now, commit: c.progress.Load().commit}
	if !st.Leading || st.Commit == st.Last || st.Commit != c.committed {
		p.commit, c.committed = now, st.Commit // something was committed, or nothing is left to commit
	}
	if len(c.queued) > 0 {
		p.write = c.writing
	}
	if len(c.waiting) > 0 {
		p.proposal = c.waiting[0].since
	}
	c.progress.Store(&p)
	if stuck := p.problem(now); stuck != c.stuck {
		if c.stuck = stuck; stuck != "" {
			c.log.Warn("this server is stuck", "why", stuck, "commit", st.Commit, "last", st.Last, "applied", c.applied,
				"writes", len(c.queued), "waiting", len(c.waiting), "peers", fmt.Sprintf("%+v", c.raft.peers))
		}
	}
}

// voting returns the voters, and the names of those that do not answer.
func (c *cluster) voting() (voters []server, missing []string) {
	voters = c.status().Voters
	for _, v := range voters {
		if r, ok := c.plane.byID(v.ID); !ok || r.Status > memberLeaving {
			missing = append(missing, v.Name)
		}
	}
	return voters, missing
}

// stoodStill returns how long a loop did not run because the process or the machine was paused, if that is at least
// limit. It takes the larger of the monotonic and the wall clock: a suspended machine stops the first.
func stoodStill(last, now time.Time, limit time.Duration) time.Duration {
	if gap := max(now.Sub(last), now.Round(0).Sub(last.Round(0))); gap >= limit {
		return gap
	}
	return 0
}

// publish shows other goroutines the current state. The term is visible before an entry of it is written: see fill.
func (c *cluster) publish() {
	st := c.raft.status()
	c.store.pinned.Store(c.raft.needed())
	c.view.Store(&st)
}

// takesPart reports whether this server takes part in the protocol. A server without a cluster does not, nor one whose
// data directory was copied to another live process: it must not vote.
func (c *cluster) takesPart() bool { return c.plane.clusterID() != "" && c.plane.admitted.Load() }

func (c *cluster) tick() error {
	if c.takesPart() {
		c.raft.stuck = c.writerStuck() || c.store.halted.Load() // a server that cannot apply must not lead
		c.raft.tick()
	}
	return nil
}

// writerStuck reports whether one durable write has taken an election timeout, or any other transaction so long that
// /health reports it. Applying takes many transactions. It counts ticks, so it must be called once in each.
func (c *cluster) writerStuck() bool {
	if turn := c.store.turn.Load(); turn != c.turn || len(c.queued) == 0 {
		c.turn, c.turnAge = turn, 0
	}
	c.turnAge++
	if durable := c.turn%2 == 1; durable {
		return c.turnAge > electionTicks
	}
	return c.turnAge > int(stuckAfter/tickTime)
}

// append proposes a command. It refuses until the leader's work runs: one from an earlier term would block the queue.
func (c *cluster) append(p *proposal) {
	var index uint64
	var err error
	switch {
	case !c.leading():
		err = errNotLeader
	case c.waitingBytes >= waitingBytesMax:
		err = errBusy
	default:
		index, err = c.raft.propose(p.data)
	}
	if err != nil {
		p.done <- applied{Err: err}
		return
	}
	p.index, p.since = index, time.Now()
	c.waiting = append(c.waiting, p)
	c.waitingBytes += len(p.data)
}

// receive handles messages of a peer. Only messages of this server's own cluster reach the protocol; a server that
// belongs to no cluster joins that of the first leader it hears. file is the snapshot that the message announces; the
// driver removes it.
func (c *cluster) receive(cluster string, messages []message, file string) error {
	if err := c.adopt(cluster, messages); err != nil {
		return err
	}
	if cluster != c.plane.clusterID() || !c.takesPart() {
		messages = nil
	}
	before := c.raft.snap
	for _, m := range messages {
		err := errMalformed // a snapshot without its file, or a file without a snapshot
		if (m.Kind == msgSnapshot) == (file != "") {
			err = c.raft.step(m)
		}
		switch {
		case errors.Is(err, errMalformed), errors.Is(err, errMisdirected):
			c.plane.count(refusalCode(err))
		case err != nil:
			return fmt.Errorf("this server's data contradicts the cluster's; give it an empty --data-dir: %w", err)
		}
	}
	switch {
	case file == "":
		return nil
	case c.raft.snap == before:
		return os.Remove(file)
	}
	c.snapshot = file
	return nil
}

func diskFailed(err error) error {
	return fmt.Errorf("the database failed; look at the disk and restart, to find out what is there: %w", err)
}

// save has the writer do what ready asks for, one transaction after the other. What callers wait for, and is in the log
// already, is applied before the next write.
func (c *cluster) save(rd ready) {
	if rd.Commit == 0 && !rd.writes() {
		return
	}
	idle := len(c.queued) == 0
	onDisk := rd.Commit > 0 && rd.Commit <= c.raft.log.durable
	if onDisk && rd.writes() && (len(c.waiting) > 0 || len(c.awaited) > 0) {
		c.queued = append(c.queued, ready{Commit: rd.Commit})
	}
	if c.queued = append(c.queued, rd); idle {
		c.saveNext()
	}
}

// saveNext begins the first of queued. That goroutine owns the store's writing side until it has posted the result.
func (c *cluster) saveNext() {
	rd, file := c.queued[0], c.snapshot
	c.writing = time.Now()
	c.children.Go(func() error {
		var done []applied
		var err error
		if rd.Snapshot != nil {
			err = c.store.install(file, rd.Snapshot.position, rd.State, rd.Entries)
		} else {
			done, err = c.store.write(rd.State, rd.Entries, rd.Commit)
		}
		base := c.store.logFirst - 1
		c.post(context.Background(), func() error { return c.written(rd, done, base, err) }) // or run has ended
		return nil
	})
}

// written records that a transaction has committed, answers the callers whose commands it applied, and begins the next.
// base is the last entry dropped from the log.
func (c *cluster) written(rd ready, done []applied, base uint64, err error) error {
	if err != nil {
		return diskFailed(err)
	}
	if rd.writes() {
		c.raft.persisted(rd)
	}
	c.work.noteApplied(done...)
	for _, a := range done {
		c.applied = a.Index
		for len(c.waiting) > 0 && c.waiting[0].index <= a.Index {
			p, res := c.waiting[0], a
			if p.index != a.Index {
				res = applied{Err: errUnknown} // one that was passed over must not block those after it
			}
			p.done <- res
			c.waitingBytes -= len(p.data)
			c.waiting[0], c.waiting = nil, c.waiting[1:]
		}
	}
	if rd.Snapshot != nil {
		c.applied = rd.Snapshot.Index
		if err := os.Remove(c.snapshot); err != nil {
			return err
		}
	}
	why := ""
	if c.store.halted.Load() {
		why = fmt.Sprintf("this server applies nothing after entry %d of the log, because the next is of a format "+
			"that this version does not know; install the version that the other servers run", c.applied)
	}
	c.plane.setProblem("format", why)
	c.release()
	c.raft.log.compact(base)
	if c.queued = c.queued[1:]; len(done) > 0 && c.applied < rd.Commit {
		c.queued = slices.Insert(c.queued, 0, ready{Commit: rd.Commit}) // more than a transaction may apply
	}
	if len(c.queued) > 0 {
		c.saveNext()
	}
	return nil
}

// updateLeadership starts the leader's work once this server leads and has applied its first entry, and ends it when
// this server no longer leads in that term.
func (c *cluster) updateLeadership(ctx context.Context) {
	st := c.raft.status()
	switch term := c.leaderTerm.Load(); {
	case term != 0 && (!st.Leading || st.Term != term):
		c.log.Info("this server is no longer the leader", "term", term, "leader", st.Leader.Name)
		c.stopLeading()
	case term == 0 && c.stopLeader == nil && st.mayAct(c.applied):
		c.log.Info("this server is the leader", "term", st.Term)
		ctx, cancel := context.WithCancel(ctx)
		c.stopLeader = cancel
		c.leaderCtx.Store(&ctx)
		c.leaderTerm.Store(st.Term)
		c.children.Go(func() error {
			err := c.work.lead(ctx, st.Term)
			if err != nil {
				err = fmt.Errorf("this server cannot lead on; look at the disk and restart: %w", err)
			}
			if c.post(context.Background(), func() error { c.stopLeader = nil; return err }) != nil {
				return err
			}
			return nil
		})
	}
}

// stopLeading ends the leader's work. The fate of proposals in progress is unknown to this server.
func (c *cluster) stopLeading() {
	c.leaderTerm.Store(0)
	if c.stopLeader != nil {
		c.stopLeader()
	}
	for _, p := range c.waiting {
		p.done <- applied{Err: errUnknown}
	}
	c.waiting, c.waitingBytes = nil, 0
}

// Making and joining a cluster

// followMembers acts on what the members say of themselves: a server without a cluster takes its next step towards one,
// and the protocol is told who wants to be a voter.
func (c *cluster) followMembers() error {
	self, servers := c.plane.own(), c.plane.servers()
	if self.Cluster == "" {
		return c.bootstrapNext(self, servers)
	}
	var list []server
	why := ""
	for _, r := range servers {
		switch {
		case r.Cluster != self.Cluster && (r.Cluster != "" || !r.Empty || r.Accepted.excludes(self.Cluster)):
			// Of another cluster, or restored from a backup, with a log of its own.
		case r.Format < self.Format && !c.raft.isVoter(r.ID):
			// It would stop at the first entry in a format that it does not know, and yet count as a voter.
			why = fmt.Sprintf("%s runs an older version, which may not know all that this cluster writes, and does "+
				"not become a voter: install the version that this server runs", r.Name)
		default:
			list = append(list, r.server())
		}
	}
	if c.raft.role != roleLeader {
		why = ""
	}
	c.plane.setProblem("learner", why)
	c.raft.setLearners(list)
	return nil
}

func (c *cluster) bootstrapNext(self record, servers []record) error {
	list, why := nextStep(self, servers, crand.Text())
	if addr := c.plane.silentJoin(); addr != "" && self.Accepted == nil && list != nil && self.Expect == 1 {
		// A server that makes a cluster alone would not notice an existing one.
		list, why = nil, fmt.Sprintf("this server makes a cluster alone once every node of --join and --retry-join "+
			"has answered and none belongs to a cluster: %s has not; start that node, or take its address out", addr)
	}
	c.plane.setProblem("cluster", why)
	switch {
	case list == nil:
		return nil
	case self.Accepted == nil:
		return c.writeMembership(membership{Accept: list})
	}
	return c.bootstrap(list)
}

// nextStep returns the list that a server without a cluster must accept, or, once it has accepted one, the same list as
// soon as all servers on it have; nil, and what it waits for or the operator must do, if there is none. others are the
// live servers except self, in order of names, and random is the id of a new cluster.
func nextStep(self record, others []record, random string) (list *bootstrapList, why string) {
	if self.Accepted != nil {
		return awaitAcceptance(self, others)
	}
	var rivals []record // that want to make one as well
	for _, r := range others {
		switch {
		case r.Accepted.names(self.server()) && len(r.Accepted.Voters) == self.Expect && self.Empty:
			return r.Accepted, ""
		case (r.Cluster != "" || r.Accepted != nil) && self.Empty:
			return nil, "this server waits until it joins the cluster of " + r.Name
		case r.Cluster != "":
			return nil, fmt.Sprintf("this server was restored from a backup and cannot join the cluster of %s: give "+
				"it an empty --data-dir, or start it without --join and --retry-join and with --bootstrap-expect=1",
				r.Name)
		case r.Expect > 0:
			rivals = append(rivals, r)
		}
	}
	if self.Expect == 0 {
		return nil, "this server waits to join a cluster, and knows none: name a server that belongs to one with " +
			"--retry-join, or make one with --bootstrap-expect"
	}
	return propose(self, rivals, random)
}

// propose makes a list of exactly as many servers as expected. Only the first of them by name does so.
func propose(self record, rivals []record, random string) (list *bootstrapList, why string) {
	list = &bootstrapList{random, []server{{self.Name, self.ID}}}
	for _, r := range rivals {
		switch {
		case r.Expect != self.Expect:
			return nil, fmt.Sprintf("%s was started with --bootstrap-expect=%d, this server with %d: start both with "+
				"the same number", r.Name, r.Expect, self.Expect)
		case !r.Empty || !self.Empty:
			return nil, fmt.Sprintf("%s and this server cannot make a cluster together, because one was restored from "+
				"a backup: start that one with --bootstrap-expect=1, and the other with an empty --data-dir and "+
				"without --bootstrap-expect", r.Name)
		}
		list.Voters = append(list.Voters, r.server())
	}
	slices.SortFunc(list.Voters, compareServers)
	switch n := len(list.Voters); {
	case !self.Empty && self.Expect > 1:
		return nil, "this server was restored from a backup and makes a cluster alone: start it with " +
			"--bootstrap-expect=1, and the others without"
	case n < self.Expect:
		more := self.Expect - n
		return nil, fmt.Sprintf("this server waits for %d more servers with --bootstrap-expect=%d", more, self.Expect)
	case n > self.Expect:
		return nil, fmt.Sprintf("%d servers were started with --bootstrap-expect=%d: stop one and start it without; "+
			"it joins when there is a cluster", n, self.Expect)
	case list.Voters[0].ID != self.ID:
		return nil, "this server waits for the list of servers from " + list.Voters[0].Name
	}
	return list, ""
}

// awaitAcceptance returns the list that this server has accepted once all servers on it have.
func awaitAcceptance(self record, others []record) (list *bootstrapList, why string) {
	list = self.Accepted
	for _, v := range list.Voters {
		i := slices.IndexFunc(others, func(r record) bool { return r.ID == v.ID })
		switch {
		case v.ID == self.ID:
		case i < 0 || others[i].Cluster == "" && others[i].Accepted == nil:
			return nil, fmt.Sprintf("the cluster is made when %s agrees too; if that server is gone for good, stop "+
				"all servers, empty their data directories and start them again", v.Name)
		case others[i].Cluster != list.Cluster &&
			(others[i].Accepted == nil || others[i].Accepted.excludes(list.Cluster)):
			return nil, fmt.Sprintf("%s has agreed to make another cluster: empty the data directory of this server "+
				"and start it again, to join that one", v.Name)
		}
	}
	return list, ""
}

// adopt writes down that this server joins its leader's cluster. One that has accepted a list joins only that.
func (c *cluster) adopt(cluster string, messages []message) error {
	own := c.plane.own()
	leader := slices.ContainsFunc(messages, func(m message) bool { return m.Kind == msgAppend && m.To == own.server() })
	if own.Cluster != "" || !leader || own.Accepted.excludes(cluster) || !own.Empty {
		return nil
	}
	return c.writeMembership(membership{Cluster: cluster})
}

// bootstrap makes this server a member of the cluster of a list that all its servers have accepted. Each writes the
// same first entry. A server that was restored from a backup continues its log; it makes a cluster alone.
func (c *cluster) bootstrap(list *bootstrapList) error {
	disk, err := c.store.saved()
	if err != nil {
		return err
	}
	state, first := firstEntry(list.Voters)
	state.Term = max(state.Term, disk.State.Term)
	first.Index, first.Term = disk.Last+1, state.Term
	if err := c.writeMembership(membership{Cluster: list.Cluster, State: &state, Entries: []entry{first}}); err != nil {
		return err
	}
	if disk, err = c.store.saved(); err == nil {
		c.raft = c.newRaft(c.raft.cfg.self, disk)
	}
	return err
}

// writeMembership writes in run's own goroutine: until a server belongs to a cluster there is nothing else to write.
func (c *cluster) writeMembership(e membership) error {
	if err := c.store.writeMembership(e); err != nil {
		return diskFailed(err)
	}
	c.plane.setOwn(func(r *record) {
		r.Accepted = cmp.Or(e.Accept, r.Accepted)
		r.Cluster, r.Empty = cmp.Or(e.Cluster, r.Cluster), r.Empty && e.Cluster == ""
	})
	if e.Cluster != "" {
		c.plane.setProblem("cluster", "")
		c.log.Info("this server belongs to a cluster now", "cluster", e.Cluster)
	}
	return nil
}

// Messages between servers

const (
	linkQueueMax     = 64               // heartbeats and replies are useless after a few seconds
	snapshotBytesMax = int64(64 << 30)  // of a snapshot
	chunkTime        = 30 * time.Second // for a client or a node to read or send a chunk of what is long
	chunkBytes       = 256 << 10        // of a response
)

// linkKey names one of the two links to a server. On each, one call is under way and later messages wait. Large ones
// have their own, so that they never delay a heartbeat.
type linkKey struct {
	to   server
	bulk bool
}

func (m *message) isBulk() bool {
	return m.Kind == msgSnapshot || m.Kind == msgAppend && m.Last > m.Prev.Index
}

// send queues messages on their links. It drops a message if the queue is full; the protocol sends another.
func (c *cluster) send(ctx context.Context, messages []message) {
	for _, m := range messages {
		k := linkKey{m.To, m.isBulk()}
		queue, busy := c.links[k]
		if len(queue) == linkQueueMax {
			c.plane.count("dropped")
			c.raft.undelivered(m.To.ID, m.Number)
			continue
		}
		if c.links[k] = append(queue, m); !busy {
			c.deliverNext(ctx, k)
		}
	}
}

// deliverNext starts a call with one large message, or all small ones, that wait on a link. The next call follows.
func (c *cluster) deliverNext(ctx context.Context, k linkKey) {
	batch := c.links[k]
	if len(batch) == 0 {
		delete(c.links, k)
		return
	}
	first := batch[0]
	if k.bulk {
		batch = batch[:1]
	}
	c.links[k] = slices.Clone(c.links[k][len(batch):])
	c.children.Go(func() error {
		end, err := c.deliver(ctx, k, batch)
		if err != nil && ctx.Err() == nil {
			level := slog.LevelDebug // another small message follows soon
			if first.Kind == msgSnapshot {
				level = slog.LevelWarn
			}
			c.log.Log(ctx, level, "a message was not delivered to another server", "server", k.to.Name,
				"snapshot", first.Kind == msgSnapshot, "err", err)
		}
		c.post(ctx, func() error { // fails only if the driver ends
			switch {
			case k.bulk && err != nil:
				c.raft.undelivered(k.to.ID, first.Number)
			case k.bulk:
				c.raft.delivered(k.to.ID, first.Number, end)
			}
			c.deliverNext(ctx, k)
			return nil
		})
		return nil
	})
}

// deliver sends the messages of one call. It returns the last entry that a large one carried.
func (c *cluster) deliver(ctx context.Context, k linkKey, batch []message) (end uint64, err error) {
	to, ok := c.plane.byID(k.to.ID)
	m := &batch[0]
	switch {
	case !ok:
		return 0, errNoAddress
	case m.Kind == msgSnapshot:
		return c.sendSnapshot(ctx, to, *m)
	case !k.bulk:
		ctx, cancel := context.WithTimeout(ctx, c.electionTime())
		defer cancel()
		return 0, c.plane.exchange(ctx, c.plane.beats, to, "/raft", batch, &none{})
	}
	if err := c.fill(m); err != nil {
		return 0, err
	}
	data, err := json.Marshal(batch)
	if err != nil {
		return 0, err
	}
	end = m.Prev.Index + uint64(len(m.Entries))
	return end, c.upload(ctx, to, "/raft", bytes.NewReader(data), int64(len(data)), "")
}

// fill reads the entries of an append, if the protocol left that to the driver. errOutdated: they were trimmed, or this
// server knows a later term, whose leader may have replaced them.
func (c *cluster) fill(m *message) error {
	if len(m.Entries) > 0 {
		return nil
	}
	list, err := c.store.entries(m.Prev.Index+1, appendBytesMax)
	why := ""
	if err != nil {
		why = fmt.Sprintf("this server cannot read its log, so other servers do not get what they lack; look at its "+
			"disk: %v", err)
	}
	if c.plane.setProblem("log", why); err != nil {
		return err
	}
	if len(list) == 0 || list[0].Index != m.Prev.Index+1 || c.status().Term != m.Term {
		return errOutdated
	}
	m.Entries = list[:min(uint64(len(list)), m.Last-m.Prev.Index)]
	return nil
}

// take passes a peer's messages to the driver. file is the snapshot that the only one of them announces, "" for none;
// after an error it is still the caller's.
func (c *cluster) take(ctx context.Context, messages []message, file string) error {
	from, _ := forwardedFrom(ctx)
	if own := c.plane.clusterID(); from.cluster == "" || own != "" && own != from.cluster {
		return errForeign
	}
	return c.post(ctx, func() error { return c.receive(from.cluster, messages, file) })
}

// Snapshots

// sendSnapshot sends a follower a copy of this server's state, in a request whose header has the message.
func (c *cluster) sendSnapshot(ctx context.Context, to record, m message) (end uint64, err error) {
	if c.status().Term != m.Term {
		return 0, errOutdated
	}
	file, snap, err := c.store.snapshotFile(ctx)
	if err != nil {
		return 0, fmt.Errorf("look at this server's disk: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	m.Prev, m.Voters = snap.position, snap.Voters
	head, err := json.Marshal(m)
	if err != nil {
		return 0, err
	}
	c.log.Info("sending a snapshot to a server whose log is too old",
		"server", to.Name, "bytes", info.Size(), "index", snap.Index)
	return snap.Index, c.upload(ctx, to, "/snapshot", file, info.Size(), string(head))
}

// upload sends a large body to another server. The whole has no deadline, but each part has.
func (c *cluster) upload(ctx context.Context, to record, path string, body io.Reader, size int64, head string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stuck := time.AfterFunc(chunkTime, cancel)
	defer stuck.Stop()
	extend := func() { stuck.Reset(chunkTime) }
	r, err := c.plane.request(ctx, http.MethodPost, to, path, &deadlineReader{io.NopCloser(body), extend})
	if err != nil {
		return err
	}
	r.ContentLength = size
	r.Header.Set(headerMessage, head)
	return answerTo(c.plane.beats, r, &none{})
}

// receiveSnapshot writes a snapshot to a file, and passes on the message that announces it.
func (c *cluster) receiveSnapshot(w http.ResponseWriter, r *http.Request) error {
	var m message
	err := json.Unmarshal([]byte(r.Header.Get(headerMessage)), &m)
	if err != nil || m.Kind != msgSnapshot || r.ContentLength < 0 || r.ContentLength > snapshotBytesMax {
		return errMalformed
	}
	file, err := os.CreateTemp(c.plane.cfg.Dir, snapshotPattern)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, deadlineBody(w, r))
	if err = errors.Join(err, file.Close()); err == nil {
		err = m.announces(file.Name())
	}
	if err == nil {
		err = c.take(r.Context(), []message{m}, file.Name())
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return writeJSON(w, none{})
}

// announces returns errMalformed if a message announces another snapshot than that of a file.
func (m *message) announces(file string) error {
	snap, err := readSnapshot(file)
	if err == nil && (snap.position != m.Prev || !slices.Equal(snap.Voters, m.Voters)) {
		err = errMalformed
	}
	return err
}

// deadlineReader reads a long body, with a deadline for each part.
type deadlineReader struct {
	io.ReadCloser
	extend func() // called before each part
}

func (d *deadlineReader) Read(b []byte) (int, error) {
	d.extend()
	return d.ReadCloser.Read(b)
}

// deadlineBody is the body of a request that may be long, where the server's deadlines are for the whole. The time for
// the response begins anew with each part.
func deadlineBody(w http.ResponseWriter, r *http.Request) *deadlineReader {
	control := http.NewResponseController(w)
	return &deadlineReader{r.Body, func() { // an error means that there is no deadline to move
		_ = control.SetReadDeadline(time.Now().Add(chunkTime))
		_ = control.SetWriteDeadline(time.Now().Add(planeWriteTime))
	}}
}

// The cluster plane: how nodes talk to each other

const (
	planeFormat         = "2"              // of requests and their answers
	gossipBytesMax      = 1 << 20          // of a heartbeat
	rpcBytesMax         = 64 << 20         // between nodes: 100,000 ordinary orders, or one job's largest a few times
	planeHeaderTime     = 5 * time.Second  // for a handshake and a request's head
	planeHeadBytesMax   = 64 << 10         // of a request's head
	planeReadTime       = 30 * time.Second // for a request's body
	planeWriteTime      = 90 * time.Second // for an answer, longer than any call waits for one
	planeIdleTime       = 2 * time.Minute  // of a kept-alive connection
	planeBeatsPerNode   = 8                // more than the heartbeat and two links need, with dials that were given up
	planeConnsPerNode   = 16               // of calls to one node; more wait for each other
	planeStreamsPerNode = 1_000            // of forwarded requests and followed outputs, which may last for ever
	uploadsMax          = 500              // of forwarded requests whose bodies are incomplete
	dialTimeout         = 2 * time.Second  // includes the handshake
	callTimeout         = 5 * time.Second  // of a call that a node answers from memory
	leaderTimeout       = 10 * time.Second // of one that the leader answers when it is committed
	keyBytesMin         = 16               // of a cluster key; "belfry keygen" makes 32
	keyProto            = "belfry-key/"    // ALPN protocol that names the caller's key, by a hash of its public key
	keyFile             = "cluster.key"    // in the data directory of a node that was given no key
	executionsLogged    = 5                // of a node that has failed
)

var (
	errFormat        = errors.New("a format that this version does not know; run the same version on all nodes")
	errForeign       = errors.New("a message of another cluster")
	errAdopted       = errors.New("the agent belongs to another cluster now, and must begin again")
	errNoAddress     = errors.New("no node of that name or id is known")
	errOutdated      = errors.New("the entries to send were trimmed from the log, or are of an earlier term")
	errOtherKey      = errors.New("the other node has another cluster key")
	errIdentityTaken = errors.New("the name or the id of this node is another's")
	errOwnAddress    = errors.New("the address is this node's own")
	errShortKey      = fmt.Errorf("a cluster key is base64 of at least %d bytes; make one with \"belfry keygen\"",
		keyBytesMin)
	errOversized = errors.New("the call is larger than allowed")

	// errRefused wraps every error of start, ask and end of a cluster, and of reportToLeader, after which the node has
	// surely done nothing: it said so, or no connection to it came about. After all others nobody can tell.
	errRefused      = errors.New("refused")
	errNoConnection = errors.New("no connection")
)

// refusalCodes are the errors that a node can answer with, by their codes in a response.
var refusalCodes = map[string]error{
	"alive-voter": errAliveVoter, "busy": errBusy, "foreign": errForeign, "format": errFormat,
	"identity-taken": errIdentityTaken, "last-voter": errLastVoter, "malformed": errMalformed,
	"misdirected": errMisdirected, "no-server": errNoServer, "not-leader": errNotLeader,
	"other-incarnation": errOtherIncarnation, "queue-full": errQueueFull, "stale-number": errStaleNumber,
	"stale-term": errStaleTerm, "stopping": errStopping, "too_large": errOversized,
	"unknown-execution": errUnknownExecution,
}

// A nodeRefusal is why a node has not done what it was asked: one of refusalCodes, and that node's sentence.
type nodeRefusal struct {
	code error
	text string
}

func (r nodeRefusal) Error() string   { return r.text }
func (r nodeRefusal) Unwrap() []error { return []error{errRefused, r.code} }

// refusalCode returns the code of an error in a response, "" if it has none.
func refusalCode(err error) string {
	for code, e := range refusalCodes {
		if errors.Is(err, e) {
			return code
		}
	}
	return ""
}

// count counts what was refused or dropped, if the reason is one of planeReasons in stats.go.
func (p *plane) count(reason string) {
	if i := slices.Index(planeReasons, reason); i >= 0 {
		p.refused[i].Add(1)
	}
}

// planeConfig is what main knows about the node.
type planeConfig struct {
	record              // Addr: that others are told, host:port; "": where it listens
	Bind      string    // host:port to listen on
	Key       []byte    // at least keyBytesMin
	Dir       string    // data directory
	Agent     *agentDir // the same, of an agent; nil: a server
	Join      []string
	JoinPause time.Duration // between two tries of an address that did not answer
	JoinTries int           // without any answer until the node gives up, 0: never
	Adopt     bool          // an agent follows another cluster once its own is silent
	BeatTime  time.Duration // between two heartbeats; a node that is silent for five counts as failed
	network   network
}

// network is how a node reaches others, and its source of chance. The zero value is the real one.
type network struct {
	listen func(network, address string) (net.Listener, error)
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
	chance func() uint64
}

// A runner runs what the leader orders: the executor.
type runner interface {
	start(dispatch) error
	ask(question) (answer, error)
	kill(kill) error
	output(ctx context.Context, execution int64, follow bool, from int64, w io.Writer) error
	printed(executions []int64) map[int64][]byte
	counts() (running, undelivered int)
}

// A record is what a node says of itself in its heartbeats.
type record struct {
	Name        string
	ID          string // of its data directory
	Incarnation uint64
	Beat        uint64 // grows with each heartbeat of an incarnation
	Addr        string // host:port of its plane
	HTTPAddr    string
	Format      byte // of a server: the latest format of commands that it applies
	Tags        map[string]string
	Server      bool
	Status      int    // memberAlive, memberLeaving or memberLeft
	Cluster     string // "": none yet
	Leads       bool
	Clock       int64 // Unix nanoseconds when the heartbeat was sent

	// Of a server that belongs to no cluster.
	Expect   int            // servers that bootstrap together, 0: it waits to join one
	Empty    bool           // its database holds nothing
	Accepted *bootstrapList // nil: none
}

// record.Status, as Serf numbers it.
const (
	memberAlive   = 1
	memberLeaving = 2
	memberLeft    = 3
	memberFailed  = 4 // no node says that of itself
)

const (
	adoptBeats    = 60              // heartbeats of silence until an agent may adopt another cluster
	silentBeats   = 5               // heartbeats that are missed until a node counts as failed
	forgetAfter   = 24 * time.Hour  // since a node was heard from
	retryDeadMax  = time.Minute     // between two heartbeats to a server that counts as failed
	deadBeats     = 60              // one heartbeat in so many tells of nodes that are silent
	beatTimeout   = time.Second     // of one heartbeat and its answer
	clockSkewMax  = 2 * time.Second // between two servers; a heartbeat under way is younger than that
	peersFile     = "peers.json"    // in the data directory: addresses of servers, for the next start
	nodeFile      = "node.json"     // in an agent's data directory
	memberNameMax = 255             // of a node's name or id
	membersMax    = 1_000           // nodes that one knows besides itself
	ownWordBeats  = 3               // heartbeats for which a node's own word keeps out what others say of it
)

// A contact is a record and when its node was last heard from, by this node or by one that reported it.
type contact struct {
	record
	Age      time.Duration // in a heartbeat: since it was heard from. Ages need no common clock
	lastSeen time.Time
	tried    time.Time     // when it was last sent a heartbeat, if it was not heard from since
	self     time.Time     // when it said so itself; zero: another node reported it
	skew     time.Duration // about how far its clock is behind this node's
}

// gossip is the content of a heartbeat and of the response to it.
type gossip struct {
	From   record
	Others []contact
}

// plane connects a node to the others: the listener, the members, the calls. Its methods are safe for concurrent use.
type plane struct {
	cfg      planeConfig
	log      *slog.Logger
	runner   runner       // fixed
	api      http.Handler // of a server, for forwarded requests. Fixed before run
	server   *cluster     // nil: an agent. Fixed before run
	listener net.Listener
	tls      *tls.Config // fixed
	calls    *http.Client
	streams  *http.Client  // for what may take long, so that no call waits for it
	beats    *http.Client  // for heartbeats and links, which must not wait for either
	refused  countBy       // by planeReasons
	admitted atomic.Bool   // this node's name and id are its own
	beatNow  chan struct{} // the next heartbeat is due now; holds one
	remind   reminders     // of what is logged each minute

	// Owned by heartbeatLoop.
	written  []string           // what the file of peers says
	clashed  bool               // the last responses said that this node's name or id is in use
	foreign  string             // where a node of another cluster refused the last heartbeat
	answered time.Time          // when one was answered last, or the loop began
	tries    int                // of the addresses to join
	tried    time.Time          // the last of these
	joined   bool               // a node has answered
	seen     map[string]contact // by id, what was logged of it
	ledBy    string             // id of the leader that was logged
	lack     time.Time          // when a majority was found missing; zero: it is not

	mu          sync.Mutex
	self        record              // guarded by mu
	known       map[string]*contact // guarded by mu: the other nodes by id; of an agent only servers
	problems    map[string]string   // guarded by mu: subject → what is wrong and what to do
	silentJoins []string            // guarded by mu: addresses to join at which nobody has responded yet
}

// newPlane listens on the cluster plane. It serves nothing until run.
func newPlane(cfg planeConfig, runner runner, log *slog.Logger) (*plane, error) {
	p := &plane{cfg: cfg, runner: runner, log: log, beatNow: make(chan struct{}, 1),
		known: map[string]*contact{}, problems: map[string]string{}}
	if p.cfg.network.listen == nil {
		p.cfg.network = network{net.Listen, new(net.Dialer).DialContext, rand.Uint64}
	}
	var err error
	if p.tls, err = clusterTLS(cfg.Key); err != nil {
		return nil, err
	}
	p.calls, p.streams = p.newClient(planeConnsPerNode), p.newClient(planeStreamsPerNode)
	p.beats = p.newClient(planeBeatsPerNode)
	if p.listener, err = p.cfg.network.listen("tcp", cfg.Bind); err != nil {
		return nil, fmt.Errorf("--bind-addr %s: cannot listen there, choose another address: %w", cfg.Bind, err)
	}
	p.self = cfg.record
	if p.self.Addr == "" {
		if p.self.Addr, err = reachable(p.listener.Addr().String()); err != nil {
			return nil, errors.Join(err, p.listener.Close())
		}
	}
	_, port, _ := net.SplitHostPort(p.self.Addr) // it has one
	p.self.Status, p.self.Tags = memberAlive, map[string]string{}
	maps.Copy(p.self.Tags, cfg.Tags)
	p.self.Tags["rpc_addr"], p.self.Tags["port"] = p.self.Addr, port
	p.silentJoins = slices.DeleteFunc(slices.Clone(cfg.Join), func(a string) bool { return a == p.self.Addr })
	return p, nil
}

// setOwn changes what this node says of itself, and sends a heartbeat soon.
func (p *plane) setOwn(change func(*record)) {
	p.mu.Lock()
	change(&p.self)
	p.mu.Unlock()
	select {
	case p.beatNow <- struct{}{}:
	default:
	}
}

// reachable turns a listener's address into one that others can use: for all addresses, the first but loopback.
func reachable(addr string) (string, error) {
	at, err := netip.ParseAddrPort(addr)
	if err != nil || !at.Addr().IsUnspecified() {
		return addr, nil
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && !n.IP.IsLoopback() {
			return net.JoinHostPort(n.IP.String(), strconv.Itoa(int(at.Port()))), nil
		}
	}
	return "", errors.New("--advertise-addr: this machine has no address but loopback; say where other nodes reach it")
}

// clusterTLS turns the cluster key into a configuration that serves and dials TLS 1.3: one Ed25519 key, the same on
// every node, and the rule that the other side must prove to have it. Nothing is issued, and no clock can be wrong.
func clusterTLS(key []byte) (*tls.Config, error) {
	if len(key) < keyBytesMin {
		return nil, errShortKey
	}
	seed, err := hkdf.Key(sha256.New, key, nil, "belfry cluster plane, format 1", ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	private := ed25519.NewKeyFromSeed(seed)
	public := private.Public().(ed25519.PublicKey)
	form := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(crand.Reader, form, form, public, private)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private}},
		// The first is what is spoken. The second tells the other side which key the caller has, see noticeKey.
		NextProtos: []string{"http/1.1", fmt.Sprintf("%s%x", keyProto, sha256.Sum256(public))},
		ClientAuth: tls.RequireAnyClientCert,
		// The chain is not looked at, the key is: VerifyConnection runs for every handshake.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 || !public.Equal(s.PeerCertificates[0].PublicKey) {
				return errOtherKey
			}
			return nil
		},
	}, nil
}

// A handshakeLog gets the lines of net/http about the plane, and turns the one that says that a caller proved no key
// into a sentence: it spoke no TLS, or had no certificate.
type handshakeLog struct{ *plane }

func (h handshakeLog) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	_, call, ok := strings.Cut(text, "TLS handshake error from ")
	addr, why, _ := strings.Cut(call, ": ")
	keyless := slices.ContainsFunc(
		[]string{"HTTP request", "does not look like a TLS handshake", "provide a certificate"},
		func(part string) bool { return strings.Contains(why, part) })
	switch {
	case !ok || !keyless:
		h.log.Debug("the cluster plane had a bad connection", "err", text)
	case h.remind.due("no key", time.Now()):
		h.log.Warn("something without a cluster key calls this node and gets no connection; the address of its API is "+
			"--http-addr", "addr", addr)
	}
	return len(line), nil
}

// noticeKey counts and logs a node that calls with another key. That node finds out first, in the handshake, and hangs
// up, so without this nobody on this side would hear of it. It never fails.
func (p *plane) noticeKey(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	for _, proto := range hello.SupportedProtos {
		if !strings.HasPrefix(proto, keyProto) || slices.Contains(p.tls.NextProtos, proto) {
			continue
		}
		if p.count("key"); p.remind.due("key", time.Now()) {
			p.log.Warn("a node with another cluster key calls this one and gets no connection; if it belongs here, "+
				"give both the same --encrypt-file", "addr", hello.Conn.RemoteAddr())
		}
	}
	return nil, nil
}

// newClient returns a client whose kept-alive connections, at most conns to a node, are its own.
func (p *plane) newClient(conns int) *http.Client {
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		return p.cfg.network.dial(ctx, network, address)
	}
	return &http.Client{Transport: transport{&http.Transport{
		DialContext: dial, TLSClientConfig: p.tls, TLSHandshakeTimeout: dialTimeout,
		MaxConnsPerHost: conns, MaxIdleConnsPerHost: conns, IdleConnTimeout: planeIdleTime,
		ResponseHeaderTimeout: planeWriteTime, MaxResponseHeaderBytes: 64 << 10, DisableCompression: true,
		ExpectContinueTimeout: 2 * callTimeout,
	}}}
}

// transport wraps errRefused in an error if the other node cannot have seen the request.
type transport struct{ *http.Transport }

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	var connected atomic.Bool
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }}
	resp, err := t.Transport.RoundTrip(r.WithContext(httptrace.WithClientTrace(r.Context(), trace)))
	if err != nil && !connected.Load() {
		err = fmt.Errorf("%w: %w: %w", errRefused, errNoConnection, err)
	}
	return resp, err
}

// run serves the plane and sends heartbeats until ctx ends.
func (p *plane) run(ctx context.Context) error {
	web := &http.Server{
		Handler: p.handler(), ErrorLog: stdlog.New(handshakeLog{p}, "", 0),
		ReadHeaderTimeout: planeHeaderTime, ReadTimeout: planeReadTime, WriteTimeout: planeWriteTime,
		IdleTimeout: planeIdleTime, MaxHeaderBytes: planeHeadBytesMax,
	}
	serving := p.tls.Clone()
	serving.GetConfigForClient = p.noticeKey
	g, ctx := errgroup.WithContext(ctx)
	web.BaseContext = func(net.Listener) context.Context { return ctx } // outputs that are followed end with ctx
	g.Go(func() error { return serveUntil(ctx, web, tls.NewListener(p.listener, serving)) })
	g.Go(func() error { return p.heartbeatLoop(ctx) })
	err := g.Wait()
	for _, client := range []*http.Client{p.calls, p.streams, p.beats} {
		client.CloseIdleConnections()
	}
	return err
}

// Members

// heartbeatLoop sends heartbeats. If leaving was called before ctx ends, a last one says that the node has left.
func (p *plane) heartbeatLoop(ctx context.Context) error {
	ticker := time.NewTicker(p.cfg.BeatTime)
	defer ticker.Stop()
	p.answered = time.Now()
	if err := readJSON(filepath.Join(p.cfg.Dir, peersFile), &p.written); err != nil {
		p.log.Warn("the addresses of the other servers are not known from the last time", "err", err)
	}
	for remembered := p.written; ; {
		answered, clash, refusal := p.sendHeartbeats(ctx, append(p.joinsDue(time.Now()), remembered...))
		if ctx.Err() == nil {
			p.afterBeat(answered, clash)
			if err := errors.Join(p.noteJoins(answered, refusal), p.bindAgent(ctx, answered)); err != nil {
				return err
			}
			if p.server != nil && p.admitted.Load() {
				p.server.post(ctx, p.server.followMembers) // fails only if this node stops
			}
		}
		select {
		case <-ctx.Done():
			if p.own().Status == memberLeaving {
				p.setOwn(func(r *record) { r.Status = memberLeft })
				p.sendHeartbeats(context.WithoutCancel(ctx), nil)
			}
			return nil
		case <-ticker.C:
		case <-p.beatNow:
		}
	}
}

// joinsDue returns the addresses of --join and --retry-join if it is time to try them again.
func (p *plane) joinsDue(now time.Time) []string {
	if p.tries > 0 && now.Sub(p.tried) < p.cfg.JoinPause {
		return nil
	}
	p.tried = now
	p.tries++
	return slices.Clone(p.cfg.Join)
}

// noteJoins records how many nodes answered, and why one refused this node, "" if none did. Its error ends the node.
func (p *plane) noteJoins(answered int, refusal string) error {
	p.joined = p.joined || answered > 0
	switch {
	case p.joined || len(p.cfg.Join) == 0 || p.cfg.JoinTries == 0 || p.tries < p.cfg.JoinTries:
		return nil
	case refusal != "":
		return fmt.Errorf("--join, --retry-join: %s", refusal)
	}
	return fmt.Errorf("--join, --retry-join: none of %s answered; start one of these nodes first, or use --retry-join "+
		"with a larger --retry-max", strings.Join(p.cfg.Join, ", "))
}

// sendHeartbeats sends a heartbeat to every known server and to addrs, and waits for the responses. It returns how many
// nodes responded, why one said that this node's name or id is in use, and why one refused this node for any reason.
func (p *plane) sendHeartbeats(ctx context.Context, addrs []string) (answered int, clash, refusal string) {
	p.mu.Lock()
	p.self.Beat++
	p.self.Clock = time.Now().UnixNano()
	p.self.Leads = p.server != nil && p.server.leading()
	targets := p.targetsLocked(addrs, time.Now())
	g := p.gossipLocked(p.cfg.Server, time.Now())
	p.mu.Unlock()
	var wait sync.WaitGroup
	answers := make([]error, len(targets))
	for i, addr := range targets {
		wait.Go(func() { answers[i] = p.sendHeartbeat(ctx, addr, g) })
	}
	wait.Wait()
	for i, err := range answers {
		addr, why := targets[i], ""
		var no nodeRefusal
		var plain tls.RecordHeaderError
		switch {
		case err == nil, errors.Is(err, errOwnAddress):
			if p.noteResponse(addr); err == nil {
				answered++
			}
		case errors.As(err, &no):
			why = no.text
		case errors.Is(err, errOtherKey):
			why = fmt.Sprintf("the node at %s has another cluster key: start both with the same --encrypt-file, "+
				"such as %s in the data directory of one of them", addr, keyFile)
		case errors.As(err, &plain):
			why = fmt.Sprintf("what answers at %s has no cluster key, so it is no cluster plane of belfry: use "+
				"the address that the node there has in --bind-addr", addr)
		default:
			p.log.Debug("a heartbeat was not answered", "addr", addr, "err", err)
			p.setProblem("join "+addr, p.silence(addr))
			continue
		}
		if p.cfg.Agent != nil && errors.Is(err, errForeign) {
			p.foreign = addr
		}
		if refusal = cmp.Or(why, refusal); errors.Is(err, errIdentityTaken) {
			clash, why = why, "" // afterBeat records it
		}
		p.setProblem("join "+addr, why)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	called := append(targets, p.cfg.Join...) // in this round or another one
	for _, c := range p.known {
		called = append(called, c.Addr)
	}
	maps.DeleteFunc(p.problems, func(subject, _ string) bool {
		addr, ok := strings.CutPrefix(subject, "join ")
		return ok && !slices.Contains(called, addr)
	})
	return answered, clash, refusal
}

// noteResponse records that the node at an address of --join or --retry-join has responded, or is this one.
func (p *plane) noteResponse(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silentJoins = slices.DeleteFunc(p.silentJoins, func(a string) bool { return a == addr })
}

// silentJoin returns an address of --join or --retry-join from which no node has responded, "" if there is none.
func (p *plane) silentJoin() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.silentJoins[:min(1, len(p.silentJoins))], "")
}

// silence says that no node answers at an address to join, if this node needs it and has tried often, else "".
func (p *plane) silence(addr string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.self.Cluster != "" || p.self.Beat <= silentBeats || !slices.Contains(p.cfg.Join, addr) {
		return ""
	}
	return fmt.Sprintf("--join, --retry-join: no node answers at %s; is it up?", addr)
}

// targetsLocked returns where heartbeats go, sorted. A failed server is tried less often the longer it has been silent.
func (p *plane) targetsLocked(addrs []string, now time.Time) []string {
	var list []string
	for _, c := range p.known {
		silent := now.Sub(c.lastSeen)
		due := !p.silentLocked(c, now) || now.Sub(c.tried) >= min(silent/10, retryDeadMax)
		if c.Server && c.Status != memberLeft && due {
			list, c.tried = append(list, c.Addr), now
		}
	}
	list = slices.DeleteFunc(append(list, addrs...), func(addr string) bool { return addr == p.self.Addr })
	slices.Sort(list)
	return slices.Compact(list)
}

// gossipLocked returns the content of a heartbeat. Only servers hear of all other nodes: a thousand agents need not
// know each other. Silent nodes are mentioned only now and then.
func (p *plane) gossipLocked(all bool, now time.Time) gossip {
	g, size := gossip{From: p.self}, 0
	for _, c := range p.known { // in random order: a node that does not fit now is mentioned later
		if size += recordBytes(&c.record); size > gossipBytesMax/2 {
			break
		}
		if (all || p.cfg.Server && c.Server) && (!p.silentLocked(c, now) || p.self.Beat%deadBeats == 0) {
			g.Others = append(g.Others, contact{record: c.record, Age: now.Sub(c.lastSeen)})
		}
	}
	return g
}

func (p *plane) silentLocked(c *contact, now time.Time) bool {
	return now.Sub(c.lastSeen) > silentBeats*p.cfg.BeatTime
}

// recordBytes is about the size of a record in a heartbeat.
func recordBytes(r *record) int {
	n := 512
	for k, v := range r.Tags {
		n += len(k) + len(v) + 8
	}
	return n
}

func (p *plane) sendHeartbeat(ctx context.Context, addr string, g gossip) error {
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	var answer gossip
	if err := p.exchange(ctx, p.beats, record{Addr: addr}, "/members", g, &answer); err != nil {
		return err
	}
	if answer.From.ID == p.cfg.ID {
		return errOwnAddress
	}
	p.learn(answer)
	return nil
}

// learn updates the table of members with what another node has said.
func (p *plane) learn(g gossip) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noteLocked(g.From, 0, true, now)
	for _, o := range g.Others[:min(len(g.Others), membersMax)] {
		p.noteLocked(o.record, max(o.Age, 0), false, now)
	}
}

// noteLocked updates the table with a node that was heard from some time ago. A heartbeat counts once, however it
// arrives. Of two processes of one node, and of two nodes of one name, the one heard from last counts: the other is
// gone, or reject would have refused this one. A node's own word overrides what others say of it while it can be heard
// from.
func (p *plane) noteLocked(r record, age time.Duration, itself bool, now time.Time) {
	seen := now.Add(-age)
	if r.ID == p.self.ID || r.Name == p.self.Name || !r.valid() || r.foreignTo(&p.self) || age > forgetAfter ||
		!r.Server && !p.cfg.Server {
		return
	}
	contradicts := func(c *contact) bool { return !itself && now.Sub(c.self) <= ownWordBeats*p.cfg.BeatTime }
	known := func(c *contact) bool { // or is older than what is known
		if c.Incarnation == r.Incarnation {
			return r.Beat <= c.Beat && !(itself && c.self.IsZero())
		}
		return !seen.After(c.lastSeen)
	}
	c := p.known[r.ID]
	if c != nil && (contradicts(c) || known(c)) {
		return
	}
	if other := p.byNameLocked(r.Name); other != nil && other.ID != r.ID {
		if contradicts(other) || other.lastSeen.After(seen) {
			return
		}
		delete(p.known, other.ID)
	}
	if c == nil {
		if !p.makeRoomLocked(now) {
			return
		}
		p.log.Info("another node is known now", "node", r.Name, "addr", r.Addr, "server", r.Server)
	}
	c = &contact{record: r, lastSeen: seen}
	if r.Clock != 0 { // a node has none before its first heartbeat, but answers
		c.skew = time.Duration(seen.UnixNano() - r.Clock)
	}
	if itself {
		c.self = now
	}
	p.known[r.ID] = c
}

// makeRoomLocked reports whether one more node fits into the table. It may remove the one that is gone for longest.
func (p *plane) makeRoomLocked(now time.Time) bool {
	if len(p.known) < membersMax {
		return true
	}
	var gone *contact
	for _, c := range p.known {
		if p.statusLocked(c, now) > memberLeaving && (gone == nil || c.lastSeen.Before(gone.lastSeen)) {
			gone = c
		}
	}
	if gone != nil {
		delete(p.known, gone.ID)
	}
	return gone != nil
}

func (r *record) server() server { return server{r.Name, r.ID} }

func (r *record) valid() bool {
	ok := func(name string) bool { return name != "" && len(name) <= memberNameMax }
	return ok(r.Name) && ok(r.ID) && r.Status >= memberAlive && r.Status <= memberLeft
}

// foreignTo reports whether two nodes belong to different clusters.
func (r *record) foreignTo(other *record) bool {
	return r.Cluster != "" && other.Cluster != "" && r.Cluster != other.Cluster
}

// conflict says why a node and a newcomer cannot both take part, "" if they can.
func (r *record) conflict(newcomer *record) string {
	switch {
	case r.ID == newcomer.ID && r.Incarnation != newcomer.Incarnation:
		return fmt.Sprintf("another process with the id of this node's data directory runs as %s at %s; stop it, or "+
			"give this node an empty --data-dir", r.Name, r.Addr)
	case r.ID != newcomer.ID && r.Name == newcomer.Name:
		return fmt.Sprintf("the name %s is in use by a live node at %s; give this node another --node-name, or stop "+
			"that one", r.Name, r.Addr)
	}
	return ""
}

func (p *plane) byNameLocked(name string) *contact {
	for _, c := range p.known {
		if c.Name == name {
			return c
		}
	}
	return nil
}

func (p *plane) statusLocked(c *contact, now time.Time) int {
	if c.Status != memberLeft && p.silentLocked(c, now) {
		return memberFailed
	}
	return c.Status
}

func (p *plane) answerHeartbeat(ctx context.Context, g gossip) (gossip, error) {
	if !g.From.valid() || len(g.Others) > membersMax {
		return gossip{}, errMalformed
	}
	if err := p.reject(ctx, g.From); err != nil {
		return gossip{}, err
	}
	p.learn(g)
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gossipLocked(g.From.Server, time.Now()), nil
}

// reject returns why a node is refused: it is of another cluster, or its name or id belongs to a live node.
func (p *plane) reject(ctx context.Context, r record) error {
	p.mu.Lock()
	self, now := p.self, time.Now()
	rivals := []record{self}
	for _, c := range p.known {
		if c.conflict(&r) != "" && p.statusLocked(c, now) <= memberLeaving {
			rivals = append(rivals, c.record)
		}
	}
	full := p.cfg.Server && p.known[r.ID] == nil && !p.makeRoomLocked(now)
	p.mu.Unlock()
	if r.foreignTo(&self) {
		or := ""
		if !r.Server {
			or = ", or start it with --adopt if its own cluster is gone for good"
		}
		return nodeRefusal{errForeign, fmt.Sprintf("%s belongs to cluster %s, %s to %s; two clusters are never "+
			"merged: take its address out of --join and --retry-join, or give %s an empty --data-dir%s",
			self.Name, self.Cluster, r.Name, r.Cluster, r.Name, or)}
	}
	if full {
		return nodeRefusal{errBusy, fmt.Sprintf("%s knows %d other nodes, and a cluster may have no more: stop one "+
			"before you start %s", self.Name, membersMax, r.Name)}
	}
	for _, rival := range rivals {
		if why := rival.conflict(&r); why != "" && p.isAlive(ctx, rival) {
			return nodeRefusal{errIdentityTaken, why}
		}
	}
	return nil
}

// isAlive asks a process that was alive a moment ago whether it still is. So a node that is restarted, perhaps
// elsewhere, need not wait until its previous process counts as failed.
func (p *plane) isAlive(ctx context.Context, r record) bool {
	if r.Incarnation == p.cfg.Incarnation {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, beatTimeout/2)
	defer cancel()
	var there record
	if err := p.exchange(ctx, p.calls, record{Addr: r.Addr}, "/self", nil, &there); err != nil {
		return ctx.Err() != nil // it may only be slow, and counts as alive until it has been silent for long enough
	}
	return there.ID == r.ID && there.Incarnation == r.Incarnation
}

// afterBeat records what the heartbeats of a round have brought. A node takes part if in the first round nobody says
// that its name or id is another's, or else once somebody responds and nobody says so any more. What is said after that
// is only reported, for then this node was first.
func (p *plane) afterBeat(answered int, clash string) {
	if clash != "" || answered > 0 {
		p.setProblem("name", clash)
		p.clashed = clash != ""
	}
	if !p.clashed {
		p.admitted.Store(true)
	}
	p.forget(time.Now())
	p.setProblem("clock", p.clockProblem())
	free, size := disk(p.cfg.Dir)
	p.setProblem("disk", diskFull.problem(p.cfg.Dir, free, size))
	p.logChanges(time.Now())
	why := ""
	if err := p.writePeers(); err != nil {
		why = fmt.Sprintf("the addresses of the other servers cannot be written to the data directory and will not be "+
			"known after a restart; look at its disk: %v", err)
	}
	p.setProblem("peers", why)
}

// bindAgent binds an agent to the first cluster that it meets, because execution ids are unique only in one cluster.
// With --adopt it follows another with the same key once its own has been silent for adoptBeats heartbeats: with
// errAdopted the plane ends, and the agent begins again, as another incarnation.
func (p *plane) bindAgent(ctx context.Context, answered int) error {
	foreign, own, agent := p.foreign, p.own(), p.cfg.Agent
	if p.foreign = ""; answered > 0 {
		p.answered = time.Now()
	}
	if agent != nil && p.admitted.Load() && own.Cluster == "" {
		for _, r := range p.servers() {
			if r.Cluster != "" {
				p.setOwn(func(self *record) { self.Cluster = r.Cluster })
				return agent.join(r.Cluster)
			}
		}
	}
	if foreign == "" || agent == nil || !p.cfg.Adopt || time.Since(p.answered) < adoptBeats*p.cfg.BeatTime {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	var there record
	err := p.exchange(ctx, p.calls, record{Addr: foreign}, "/self", nil, &there)
	if err != nil || !there.Server || !there.foreignTo(&own) {
		return nil
	}
	p.log.Warn("the cluster of this agent is silent, and it adopts another", "cluster", there.Cluster, "addr", foreign)
	return cmp.Or(agent.join(there.Cluster), errAdopted)
}

// forget removes nodes that were not heard from for a day.
func (p *plane) forget(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.known, func(_ string, c *contact) bool { return now.Sub(c.lastSeen) > forgetAfter })
}

// clockProblem says which server's clock differs from this node's, "" if none does.
func (p *plane) clockProblem() string {
	for _, c := range p.all() {
		if c.Server && c.Status == memberAlive && c.skew.Abs() > clockSkewMax {
			return fmt.Sprintf("the clocks of %s and %s differ by about %s: set both by the same time server",
				p.cfg.Name, c.Name, c.skew.Abs().Round(time.Second))
		}
	}
	return ""
}

// writePeers keeps addresses for the next process. They are a hint: --join or other nodes replace what is lost.
func (p *plane) writePeers() error {
	var addrs []string
	for _, c := range p.all() {
		if c.Server && c.ID != p.cfg.ID {
			addrs = append(addrs, c.Addr)
		}
	}
	if len(addrs) == 0 || slices.Equal(addrs, p.written) {
		return nil
	}
	err := replaceJSON(filepath.Join(p.cfg.Dir, peersFile), addrs)
	if err == nil {
		p.written = addrs
	}
	return err
}

// logChanges logs which nodes have failed or are back, who leads, and each minute that a majority is missing.
func (p *plane) logChanges(now time.Time) {
	seen := map[string]contact{}
	for _, c := range p.all() {
		seen[c.ID] = c
		before, known := p.seen[c.ID]
		switch {
		case !known || c.ID == p.cfg.ID || before.Status == c.Status:
		case c.Status == memberFailed:
			p.log.Warn("a node has failed: it does not answer",
				append(p.runsOn(c.Name), "node", c.Name, "since", c.lastSeen)...)
		case before.Status == memberFailed:
			p.log.Info("a node is back", "node", c.Name, "silent", c.lastSeen.Sub(before.lastSeen).Round(time.Second))
		}
	}
	p.seen = seen
	leader, ok := p.leaderRecord()
	if ok && leader.ID != p.ledBy && leader.ID != p.cfg.ID {
		p.log.Info("another server is the leader", "leader", leader.Name)
	}
	p.ledBy = leader.ID
	if p.server == nil {
		return
	}
	voters, missing := p.server.voting()
	if len(voters) == 0 || len(voters)-len(missing) > len(voters)/2 {
		if p.lack = (time.Time{}); p.remind.over("majority") {
			p.log.Info("there is a majority of the servers again")
		}
		return
	}
	if p.lack.IsZero() {
		p.lack = now
	}
	if now.Sub(p.lack) >= silentBeats*p.cfg.BeatTime && p.remind.due("majority", now) {
		p.log.Warn("there is no majority of the servers: nothing fires and writes are refused until enough of them "+
			"are back", "missing", missing, "voters", len(voters), "needed", len(voters)/2+1)
	}
}

// runsOn returns the executions that run on a node, for the log. An agent does not know them.
func (p *plane) runsOn(node string) []any {
	if p.server == nil {
		return nil
	}
	var list []string
	open, _ := p.server.store.clients.unfinishedExecutions() // the log can do without
	for _, e := range open {
		if e.Node == node {
			list = append(list, e.JobName+"/"+executionName(e.ID, e.Node))
		}
	}
	return []any{"running", len(list), "executions", list[:min(len(list), executionsLogged)]}
}

// setProblem records what is wrong with a subject, "" for nothing, and logs news: "cluster" at Info, others at Warn.
func (p *plane) setProblem(subject, why string) {
	p.mu.Lock()
	before := p.problems[subject]
	if p.problems[subject] = why; why == "" {
		delete(p.problems, subject)
	}
	p.mu.Unlock()
	level := slog.LevelWarn
	if subject == "cluster" {
		level = slog.LevelInfo
	}
	if why != "" && why != before {
		p.log.Log(context.Background(), level, why)
	}
}

// gauges returns the numbers of this server, and of the cluster as it sees it.
func (p *plane) gauges() gauges {
	voters, missing := p.server.voting()
	g := gauges{
		Term: p.server.status().Term, Voters: len(voters), Answering: len(voters) - len(missing), Refused: &p.refused,
		Notices: p.server.store.shown.Load().notices, Members: map[string]int{},
	}
	_, g.LeaderKnown = p.leaderRecord()
	for _, m := range p.all() {
		g.Members[memberStatus[m.Status]]++
		if m.Server && m.Status == memberAlive {
			g.Clocks = max(g.Clocks, m.skew.Abs())
		}
	}
	g.Free, g.Size = disk(p.cfg.Dir)
	g.Running, g.Undelivered = p.runner.counts()
	return g
}

// health returns why reads or writes fail on this node, and what else is wrong, each with its remedy. It never waits.
func (p *plane) health() (problems, warnings []string) {
	p.mu.Lock()
	warnings = slices.Sorted(maps.Values(p.problems))
	p.mu.Unlock()
	leader, led := p.leaderRecord()
	switch {
	case !led && p.server == nil:
		problems = []string{"no server that leads is known: this node is given nothing to run; see --retry-join, and " +
			"whether the servers are up"}
	case !led && p.clusterID() == "":
		problems = []string{"this server belongs to no cluster yet: see --bootstrap-expect, --retry-join, and " +
			"whether the others are up"}
	case !led:
		problems = []string{"no leader is known: nothing fires and writes are refused until a majority of the " +
			"servers reach each other; see \"belfry raft list-peers\""}
	case leader.ID == p.cfg.ID && !p.leading(), leader.ID != p.cfg.ID && !leader.Leads:
		problems = []string{"the leader was elected a moment ago: writes are refused until it has taken up its work"}
	}
	if p.server == nil {
		return problems, warnings
	}
	if stuck := p.server.progress.Load().problem(time.Now()); stuck != "" {
		problems = append(problems, stuck)
	}
	if err := p.server.store.readable(time.Now()); err != nil {
		problems = append(problems, fmt.Sprintf("the database cannot be read: restore a backup, or start this server "+
			"with an empty --data-dir, so that the others send it a copy: %v", err))
	}
	return problems, warnings
}

// leaving tells the other nodes that this one accepts no more executions.
func (p *plane) leaving() { p.setOwn(func(r *record) { r.Status = memberLeaving }) }

// all returns this node and those that it knows, in order of names, each with its apparent status.
func (p *plane) all() []contact {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	list := []contact{{record: p.self, lastSeen: now}}
	for _, c := range p.known {
		seen := *c
		seen.Status = p.statusLocked(c, now)
		list = append(list, seen)
	}
	slices.SortFunc(list, func(a, b contact) int { return compareServers(a.server(), b.server()) })
	return list
}

// nodes returns those that can be given executions. A node is overdue if it missed a heartbeat, or if this server leads
// and the node's last heartbeat said that the node leads: then it was not heard from since.
func (p *plane) nodes() []node {
	var list []node
	cluster, leads := p.clusterID(), p.leading()
	for _, c := range p.all() {
		if c.Cluster == cluster && c.Status == memberAlive {
			overdue := time.Since(c.lastSeen) > p.cfg.BeatTime*3/2 || leads && c.Leads && c.ID != p.cfg.ID
			list = append(list, node{c.Name, c.Incarnation, c.Tags, overdue})
		}
	}
	return list
}

// servers returns the live ones other than this node.
func (p *plane) servers() []record {
	var list []record
	for _, c := range p.all() {
		if c.Server && c.Status == memberAlive && c.ID != p.cfg.ID {
			list = append(list, c.record)
		}
	}
	return list
}

func (p *plane) own() record {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.self
}

func (p *plane) clusterID() string { return p.own().Cluster }

func (p *plane) byID(id string) (record, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if id == p.self.ID {
		return p.self, true
	}
	return p.seenLocked(p.known[id])
}

// seenLocked returns a node with its apparent status; c is nil for one that is not known.
func (p *plane) seenLocked(c *contact) (record, bool) {
	if c == nil {
		return record{}, false
	}
	r := c.record
	r.Status = p.statusLocked(c, time.Now())
	return r, true
}

func (p *plane) byName(name string) (record, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seenLocked(p.byNameLocked(name))
}

// leaderRecord returns the server that leads, as far as this node knows.
func (p *plane) leaderRecord() (record, bool) {
	if p.server != nil {
		return p.byID(p.server.status().Leader.ID)
	}
	for _, r := range p.servers() {
		if r.Leads {
			return r, true
		}
	}
	return record{}, false
}

func (p *plane) leading() bool { return p.server != nil && p.server.leading() }

// Calls between nodes

const (
	pathDispatch = "/dispatch"

	headerFormat  = "Belfry-Format"
	headerCluster = "Belfry-Cluster" // of the caller
	headerTo      = "Belfry-To"      // id of the node that is meant
	headerRefused = "Belfry-Refused" // in answers: a key of refusalCodes
	headerMessage = "Belfry-Message" // the message that announces a snapshot
	headerActor   = "Belfry-Actor"   // of a forwarded request: its caller
	headerClient  = "Belfry-Client"  // of a forwarded request: the address of its client
	headerRequest = "Belfry-Request" // of a forwarded request: the id under which it is done once
	headerFinal   = "Belfry-Final"   // it must not be forwarded again
	headerIndex   = "Belfry-Index"   // in answers of the API: log index that the write was applied at
)

// none is the body of a call or response without content.
type none struct{}

func (p *plane) handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, open bool, fn func(http.ResponseWriter, *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			err := p.check(r, open)
			if err == nil {
				connAdmitted(r)
				h := r.Header
				from := forwarded{h.Get(headerActor), h.Get(headerClient), h.Get(headerRequest),
					h.Get(headerFinal) != "", h.Get(headerCluster)}
				err = fn(w, r.WithContext(context.WithValue(r.Context(), forwardedKey{}, from)))
			}
			if err != nil {
				p.fail(w, err)
			}
		})
	}
	// Callers of these may belong to no cluster yet, or to another.
	handle("POST /members", true, serveCall(gossipBytesMax, p.answerHeartbeat))
	handle("POST /self", true, func(w http.ResponseWriter, _ *http.Request) error { return writeJSON(w, p.own()) })
	handle("POST "+pathDispatch, false, serveCall(rpcBytesMax, p.start))
	handle("POST /kill", false, serveCall(rpcBytesMax, p.kill))
	handle("POST /question", false, serveCall(rpcBytesMax, p.ask))
	handle("GET /output", false, p.serveOutput)
	handle("POST /printed", false, serveCall(rpcBytesMax, p.printed))
	if p.server != nil {
		handle("POST /raft", true, serveCall(rpcBytesMax, func(ctx context.Context, m []message) (none, error) {
			return none{}, p.server.take(ctx, m, "")
		}))
		handle("POST /snapshot", true, p.server.receiveSnapshot)
		handle("POST /results", false, serveCall(rpcBytesMax, p.reportToLeader))
		handle("POST /remove", false, serveCall(rpcBytesMax, p.removePeer))
		handle("POST /applied", false, serveCall(rpcBytesMax, p.appliedByLeader))
		handle("/api/", false, p.serveForwarded)
	}
	return mux
}

func (p *plane) check(r *http.Request, open bool) error {
	switch cluster := p.clusterID(); {
	case r.Header.Get(headerFormat) != planeFormat:
		return errFormat
	case r.Header.Get(headerTo) != "" && r.Header.Get(headerTo) != p.cfg.ID:
		return errMisdirected
	case !open && (cluster == "" || r.Header.Get(headerCluster) != cluster):
		return errForeign
	}
	return nil
}

func (p *plane) fail(w http.ResponseWriter, err error) {
	p.count(refusalCode(err))
	w.Header().Set(headerRefused, refusalCode(err))
	http.Error(w, err.Error(), http.StatusConflict)
}

// An rpc is what one node asks another to do.
type rpc[In, Out any] func(context.Context, In) (Out, error)

// serveCall has fn serve calls of at most limit bytes.
func serveCall[In, Out any](limit int64, fn rpc[In, Out]) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		var large *http.MaxBytesError
		data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
		switch {
		case errors.As(err, &large):
			return errOversized
		case err != nil:
			return err
		}
		var in In
		if err := json.Unmarshal(data, &in); err != nil {
			return fmt.Errorf("%w: %w", errMalformed, err)
		}
		out, err := fn(r.Context(), in)
		if err != nil {
			return err
		}
		return writeJSON(w, out)
	}
}

func writeJSON(w http.ResponseWriter, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(data) // fails only if the caller has gone
	return nil
}

// serveOutput streams an output while the caller reads it. An error aborts the connection: a part must not look whole.
func (p *plane) serveOutput(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	execution, err1 := strconv.ParseInt(q.Get("execution"), 10, 64)
	from, err2 := strconv.ParseInt(q.Get("from"), 10, 64)
	if err1 != nil || err2 != nil {
		return errMalformed
	}
	out := streamTo(w)
	out.live = true
	err := p.runner.output(r.Context(), execution, q.Get("follow") == "true", from, out)
	if err != nil && out.began {
		panic(http.ErrAbortHandler)
	}
	return err
}

// A streamWriter writes a response that may be long. The reader has chunkTime for each chunk, where the server's limit
// is for the whole: a slow one is served, one that does not read is dropped.
type streamWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	live    bool   // each write is sent at once
	began   bool   // the header is written
	prefix  string // of the path in Location
	store   *store // names the log index that is applied, for the server that forwarded the request; nil: it does not
}

func streamTo(w http.ResponseWriter) *streamWriter {
	if s, ok := w.(*streamWriter); ok {
		return s
	}
	return &streamWriter{ResponseWriter: w, control: http.NewResponseController(w)}
}

// Unwrap implements what http.ResponseController looks for.
func (w *streamWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// extend moves the write deadline. Test recorders support none, so the error is ignored.
func (w *streamWriter) extend() { _ = w.control.SetWriteDeadline(time.Now().Add(chunkTime)) }

func (w *streamWriter) WriteHeader(status int) {
	w.began = true
	if to := w.Header().Get("Location"); w.prefix != "" && strings.HasPrefix(to, "/") {
		w.Header().Set("Location", w.prefix+to)
	}
	if w.store != nil {
		w.Header().Set(headerIndex, strconv.FormatUint(w.store.applied.Load(), 10))
	}
	w.extend()
	w.ResponseWriter.WriteHeader(status)
}

func (w *streamWriter) Write(p []byte) (n int, err error) {
	w.began = true
	for part := range slices.Chunk(p, chunkBytes) {
		w.extend()
		m, err := w.ResponseWriter.Write(part)
		if n += m; err != nil {
			return n, err
		}
	}
	if w.live {
		if err = w.control.Flush(); errors.Is(err, http.ErrNotSupported) {
			err = nil
		}
	}
	return n, err
}

func (p *plane) exchange(ctx context.Context, client *http.Client, to record, path string, in, out any) error {
	data, err := json.Marshal(in)
	if err != nil {
		return err
	}
	r, err := p.request(ctx, http.MethodPost, to, path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	return answerTo(client, r, out)
}

// answerTo sends a request, and reads the answer into out: as it is if that is an io.Writer, else as JSON. An answer
// without success is an error. After an error that wraps errRefused nothing was done.
func answerTo(client *http.Client, r *http.Request, out any) error {
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return readRefusal(resp)
	}
	if w, ok := out.(io.Writer); ok {
		_, err = io.Copy(w, resp.Body)
		return err
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, rpcBytesMax))
	if err != nil {
		return err
	}
	return json.Unmarshal(answer, out)
}

func (p *plane) request(ctx context.Context, method string, to record, path string, body io.Reader) (
	*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, method, "https://"+to.Addr+path, body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errRefused, err)
	}
	p.sign(r.Header, to)
	if path == pathDispatch {
		// An order leaves when the node asks for it: in the socket of a paused one it would lie, and run later.
		r.Header.Set("Expect", "100-continue")
	}
	return r, nil
}

// sign adds who calls whom. A server forwards only to the leader, so its request must not be forwarded again.
func (p *plane) sign(h http.Header, to record) {
	h.Set(headerFormat, planeFormat)
	h.Set(headerCluster, p.clusterID())
	if to.ID != "" {
		h.Set(headerTo, to.ID)
	}
	if p.server != nil {
		h.Set(headerFinal, "true")
	}
}

func readRefusal(resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return err
	}
	text = bytes.TrimSpace(text)
	if e := refusalCodes[resp.Header.Get(headerRefused)]; e != nil {
		return nodeRefusal{e, string(text)}
	}
	return fmt.Errorf("the node answered %s: %s", resp.Status, text)
}

// callNode calls a node by name, and fn directly if that is this node.
func callNode[In, Out any](ctx context.Context, p *plane, name, path string, in In, fn rpc[In, Out]) (
	out Out, err error) {
	if name == p.cfg.Name {
		if out, err = fn(ctx, in); err != nil {
			err = fmt.Errorf("%w: %w", errRefused, err)
		}
		return out, err
	}
	to, ok := p.byName(name)
	if !ok {
		return out, fmt.Errorf("%w: %s: %w", errRefused, name, errNoAddress)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return out, p.exchange(ctx, p.calls, to, path, in, &out)
}

func (p *plane) start(_ context.Context, d dispatch) (none, error) { return none{}, p.runner.start(d) }
func (p *plane) ask(_ context.Context, q question) (answer, error) { return p.runner.ask(q) }
func (p *plane) kill(_ context.Context, k kill) (none, error)      { return none{}, p.runner.kill(k) }
func (p *plane) printed(_ context.Context, executions []int64) (map[int64][]byte, error) {
	return p.runner.printed(executions), nil
}

// printedOn returns the last bytes that executions on a node have printed.
func (p *plane) printedOn(ctx context.Context, node string, executions []int64) (map[int64][]byte, error) {
	return callNode(ctx, p, node, "/printed", executions, p.printed)
}

// outputFrom writes what an execution has printed from the offset from on, and with follow continues until the run
// ends. The caller limits the time. errUnknownExecution: the node does not have it.
func (p *plane) outputFrom(ctx context.Context, node string, execution int64, follow bool, from int64,
	w io.Writer) error {
	if node == p.cfg.Name {
		return p.runner.output(ctx, execution, follow, from, w)
	}
	to, ok := p.byName(node)
	if !ok {
		return fmt.Errorf("%w: %s: %w", errRefused, node, errNoAddress)
	}
	path := fmt.Sprintf("/output?execution=%d&from=%d&follow=%t", execution, from, follow)
	r, err := p.request(ctx, http.MethodGet, to, path, http.NoBody)
	if err != nil {
		return err
	}
	return answerTo(p.streams, r, w)
}

// towardsLeader returns the nodes to ask for what only the leader can do: the leader, and on an agent then the others.
func (p *plane) towardsLeader() (list []record) {
	leader, ok := p.leaderRecord()
	if ok && leader.ID != p.cfg.ID {
		list = append(list, leader)
	}
	if p.server == nil {
		list = append(list, slices.DeleteFunc(p.servers(), func(r record) bool { return r.ID == leader.ID })...)
	}
	return list
}

// atLeader has the leader, wherever it is, serve a call with fn.
func atLeader[In, Out any](ctx context.Context, p *plane, path string, in In, fn rpc[In, Out]) (
	out Out, err error) {
	ctx, cancel := context.WithTimeout(ctx, leaderTimeout)
	defer cancel()
	if p.leading() {
		return fn(ctx, in)
	}
	err = fmt.Errorf("%w: %w", errRefused, errNotLeader)
	if from, _ := forwardedFrom(ctx); from.Final {
		return out, err
	}
	list := p.towardsLeader()
	for _, to := range list {
		// Each gets its share of the time.
		ctx, cancel := context.WithTimeout(ctx, leaderTimeout/time.Duration(len(list)))
		err = p.exchange(ctx, p.calls, to, path, in, &out)
		cancel()
		if !errors.Is(err, errRefused) {
			break // it was done, or may have been: another server would do it again
		}
	}
	return out, err
}

// reportToLeader has the leader record results, and returns the executions whose results it has recorded.
func (p *plane) reportToLeader(ctx context.Context, results []result) ([]int64, error) {
	if err := checkResults(results); err != nil {
		return nil, err
	}
	return atLeader(ctx, p, "/results", results, func(ctx context.Context, results []result) ([]int64, error) {
		return p.server.work.report(ctx, results)
	})
}

func checkResults(results []result) (err error) {
	for i := range results {
		err = cmp.Or(err, results[i].check())
	}
	return err
}

// catchUp returns once this server has applied what the leader has applied now.
func (p *plane) catchUp(ctx context.Context) error {
	index, err := p.appliedByLeader(ctx, none{})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, leaderTimeout)
	defer cancel()
	return p.server.waitApplied(ctx, index)
}

func (p *plane) appliedByLeader(ctx context.Context, in none) (uint64, error) {
	return atLeader(ctx, p, "/applied", in, func(context.Context, none) (uint64, error) {
		return p.server.store.applied.Load(), nil
	})
}

// removePeer removes a server that is gone or leaving from the voters. Any server can be asked.
func (p *plane) removePeer(ctx context.Context, id string) (none, error) {
	return atLeader(ctx, p, "/remove", id, func(ctx context.Context, id string) (none, error) {
		switch r, known := p.byID(id); {
		case r.Server && r.Status == memberAlive:
			return none{}, errAliveVoter
		case !known && !slices.ContainsFunc(p.server.status().Voters, func(v server) bool { return v.ID == id }):
			return none{}, errNoServer
		}
		return none{}, p.server.removeVoter(ctx, id)
	})
}

// leave removes this node from its cluster: it is given no more executions, and when this returns nil, a server is no
// longer a voter. The last voter of a cluster just stops. After an error the node is as before.
func (p *plane) leave(ctx context.Context) error {
	p.leaving()
	if p.server == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, leaderTimeout)
	defer cancel()
	err := p.server.setLeaving(ctx, true)
	for err == nil {
		p.sendHeartbeats(ctx, nil) // or the leader would refuse to remove a live server
		if p.leading() {
			p.server.transferLeadership(ctx) // so that no election timeout passes; a sole voter removes itself
		}
		_, left := p.removePeer(ctx, p.cfg.ID)
		if left == nil || errors.Is(left, errLastVoter) || p.clusterID() == "" {
			return nil
		}
		if pause(ctx, removalPause) != nil {
			err = left
		}
	}
	p.setOwn(func(r *record) { r.Status = memberAlive })
	err = fmt.Errorf("this server has not left, as a majority of the servers must agree: start others, or just stop "+
		"it; %w", err)
	return errors.Join(err, p.server.setLeaving(context.WithoutCancel(ctx), false))
}

// forwarded is the sender of a request from another node, which has checked that its client may send it.
type forwarded struct {
	Actor   string // who asks
	Client  string // its address
	Request string // id under which a write is done once
	Final   bool   // it must not be forwarded again
	cluster string // of the other node
}

type forwardedKey struct{}

// forwardedFrom returns the sender of a request over the plane; false if the request came from a client.
func forwardedFrom(ctx context.Context) (forwarded, bool) {
	f, ok := ctx.Value(forwardedKey{}).(forwarded)
	return f, ok
}

// clientAddr returns the client's address without its port, as seen by the node that received the request.
func clientAddr(r *http.Request) string {
	if from, ok := forwardedFrom(r.Context()); ok {
		return from.Client
	}
	addr, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return addr
}

// serveForwarded passes a request that another node forwarded to the API.
func (p *plane) serveForwarded(w http.ResponseWriter, r *http.Request) error {
	r.Host = "localhost" // the client's Host was looked at where it came in
	r.Body = deadlineBody(w, r)
	out := streamTo(w)
	out.live = true
	http.StripPrefix("/api", p.api).ServeHTTP(out, r)
	return nil
}

// An agent's data directory

// agentDir is the data directory of a node without a database. Its file holds the exported fields.
type agentDir struct {
	path    string
	lock    *os.File // held while the node runs
	ID      string   `json:"id"`      // random, made with the data directory
	Cluster string   `json:"cluster"` // that the agent belongs to, "": none yet
}

func openAgentDir(path string) (*agentDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("--data-dir: cannot make the directory, choose one that this user may write: %w", err)
	}
	lock, err := lockDir(path)
	if err != nil {
		return nil, fmt.Errorf("--data-dir %s: %w", path, err)
	}
	d := &agentDir{path: path, lock: lock}
	if err = readJSON(d.file(), d); err != nil {
		err = fmt.Errorf("%s cannot be read; give this agent an empty directory: %w", nodeFile, err)
	} else if d.ID == "" {
		d.ID = crand.Text()
		err = replaceJSON(d.file(), d)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("--data-dir %s: %w", path, err), d.close())
	}
	return d, nil
}

// readJSON reads a file into v. If there is none, v stays as it is.
func readJSON(path string, v any) error {
	doc, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(doc, v)
	}
	return err
}

func replaceJSON(path string, v any) error {
	doc, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return replaceFile(path, doc)
}

// replaceFile writes a file that only this user may read, in one step: a crash leaves the old file or the new one.
func replaceFile(path string, doc []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(doc)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// join binds the agent to a cluster. Called by one goroutine.
func (d *agentDir) join(cluster string) error {
	d.Cluster = cluster
	if err := replaceJSON(d.file(), d); err != nil {
		return fmt.Errorf("--data-dir: cannot write down which cluster this agent belongs to: %w", err)
	}
	return nil
}

func (d *agentDir) file() string { return filepath.Join(d.path, nodeFile) }

func (d *agentDir) close() error { return d.lock.Close() }
