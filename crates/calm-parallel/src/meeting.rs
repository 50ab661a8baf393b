//! How processes find each other where no MPI does it for them: one exchange over TCP at the meeting point, then nothing listens
//! any more.
//!
//! Rank 0 listens; every other process connects, says who it is, and gets what rank 0 hands out and the names of all machines.
//! A *token* keeps jobs apart: whoever has another one is sent away, and does not disturb those who belong together.
//!
//! ```text
//! rank r -> rank 0   {"calm": 1, "token": ..., "rank": r, "size": W, "host": ...}\n
//! rank 0 -> rank r   {"handed": [bytes], "hosts": [...]}\n        when all have come
//!                    {"refused": "why"}\n                         at once
//! ```

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::limit::LIMIT;
use crate::world::{Launcher, World};

/// The variable that names the point, `HOST:PORT`, whatever the launcher says.
pub const POINT: &str = "CALM_MEETING";
/// The variable that sets the token, whatever the launcher says.
pub const TOKEN: &str = "CALM_MEETING_TOKEN";

/// What both sides must speak.
const VERSION: u32 = 1;
/// How long a connection may take to say who it is; others wait meanwhile.
const HELLO: Duration = Duration::from_secs(2);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two tries to reach rank 0 at most.
const SLOWLY: Duration = Duration::from_secs(1);
/// Bytes of a line at most.
const LINE: u64 = 1 << 20;
/// Where SLURM names no port: the first, and how many from there on a job's number chooses among; below those that systems give away.
const PORTS: (u64, u64) = (20_000, 12_000);

/// Where the processes of a job meet, and what shows that they belong to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    host: String,
    port: u16,
    token: String,
}

#[derive(Serialize, Deserialize)]
struct Hello {
    calm: u32,
    token: String,
    rank: usize,
    size: usize,
    host: String,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    #[serde(rename = "met")]
    Met { handed: Vec<u8>, hosts: Vec<String> },
    #[serde(rename = "refused")]
    Refused(String),
}

impl Point {
    /// The meeting point that the environment of this process names.
    ///
    /// # Errors
    /// None is named, or it is no `HOST:PORT`.
    pub fn here(world: &World) -> Result<Self> {
        Self::find(world, |name| std::env::var(name).ok())
    }

    /// The meeting point that these variables name: ours, those of torchrun (`MASTER_ADDR`, `MASTER_PORT`), or in a step of
    /// SLURM its first node with a port that its number chooses.
    ///
    /// # Errors
    /// As [`Point::here`].
    pub fn find(world: &World, variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let wrong = |what: String| {
            Error::new(
                what,
                format!("set {POINT}=HOST:PORT, a free port of the machine of rank 0, for all of them"),
            )
        };
        let port = |name: &str, text: &str| -> Result<u16> {
            let port = text.trim().parse().ok().filter(|port| *port > 0);
            port.ok_or_else(|| wrong(format!("{name}={text} names no port from 1 to 65535")))
        };
        let job = |name: &str| variable(name).unwrap_or_default();
        let (host, port, token) = if let Some(text) = variable(POINT) {
            let split = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            let (host, number) = split.ok_or_else(|| wrong(format!("{POINT}={text} is no HOST:PORT")))?;
            (host.trim_matches(['[', ']']).to_owned(), port(POINT, number)?, text.clone())
        } else if let Some((host, number)) = variable("MASTER_ADDR").zip(variable("MASTER_PORT")) {
            let named = port("MASTER_PORT", &number)?;
            // torchrun's own service holds the port that it names, and ours is the next one.
            let taken = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|held| held == "True");
            let next = named.checked_add(u16::from(taken));
            let next = next.ok_or_else(|| wrong(format!("MASTER_PORT={number} has no port behind it")))?;
            let token = format!(
                "{host}:{number} {} {} {} {}",
                job("TORCHELASTIC_RUN_ID"),
                job("TORCHELASTIC_RESTART_COUNT"),
                job("SLURM_JOB_ID"),
                job("SLURM_STEP_ID")
            );
            (host, next, token)
        } else if world.launcher == Launcher::Slurm
            && let Some(host) = variable("SLURM_STEP_NODELIST").and_then(|nodes| first_node(&nodes))
        {
            let (id, step) = (job("SLURM_JOB_ID"), job("SLURM_STEP_ID"));
            let number = |text: &str| text.trim().parse::<u64>().unwrap_or(0);
            let port = PORTS.0 + (number(&id) * 7 + number(&step)) % PORTS.1;
            (host, port as u16, format!("slurm {id} {step} {}", job("SLURM_RESTART_COUNT")))
        } else {
            return Err(wrong(format!("{world}, and nothing says where they meet")));
        };
        Ok(Self { host, port, token: variable(TOKEN).unwrap_or(token) })
    }

    /// Meets all others: returns what rank 0 hands out, and the names of all machines by rank.
    ///
    /// # Errors
    /// Somebody does not come within the limit: who; a port that another job holds; a process of another job at the point.
    pub fn meet(
        &self,
        world: &World,
        host: &str,
        handed: &[u8],
        limit: Duration,
    ) -> Result<(Vec<u8>, Vec<String>)> {
        let end = Instant::now() + limit;
        if world.rank == 0 {
            let (hosts, streams) = self.receive(world, host, end, limit)?;
            let answer = Answer::Met { handed: handed.to_vec(), hosts: hosts.clone() };
            for mut stream in streams {
                say(&mut stream, &answer).map_err(|e| self.broken(&e))?;
            }
            return Ok((handed.to_vec(), hosts));
        }
        self.ask(world, host, end, limit)
    }

    /// Who still comes, by rank: for the message of a meeting in vain. Only rank 0 learns it.
    pub fn roll_call(&self, world: &World, host: &str, limit: Duration) -> Vec<bool> {
        let end = Instant::now() + limit;
        let mut came = vec![false; world.size];
        came[world.rank] = true;
        if world.rank != 0 {
            came[0] = self.ask(world, host, end, limit).is_ok();
            return came;
        }
        let Ok(listener) = self.listen() else { return came };
        while Instant::now() < end && came.contains(&false) {
            if let Some((mut stream, hello)) = self.next(&listener, world) {
                came[hello.rank] = true;
                // Whoever has gone since has gone.
                let _ = say(&mut stream, &Answer::Met { handed: Vec::new(), hosts: Vec::new() });
            }
        }
        came
    }

    /// Rank 0: waits for all.
    fn receive(
        &self,
        world: &World,
        host: &str,
        end: Instant,
        limit: Duration,
    ) -> Result<(Vec<String>, Vec<TcpStream>)> {
        let listener = self.listen()?;
        let mut came: Vec<Option<(String, Option<TcpStream>)>> = (0..world.size).map(|_| None).collect();
        came[0] = Some((host.to_owned(), None));
        while came.iter().any(Option::is_none) {
            if Instant::now() >= end {
                let missing = came.iter().enumerate().filter(|(_, one)| one.is_none());
                let missing: Vec<String> = missing.map(|(rank, _)| format!("rank {rank}")).collect();
                return Err(Error::new(
                    format!(
                        "{} of {} did not come to the meeting at {self} within {} s",
                        missing.join(", "),
                        world.size,
                        limit.as_secs_f64()
                    ),
                    format!(
                        "see what they say, and whether they can reach {self}; {LIMIT}=SECONDS waits longer"
                    ),
                ));
            }
            let Some((mut stream, hello)) = self.next(&listener, world) else { continue };
            if let Some((earlier, _)) = &came[hello.rank] {
                let twice = format!("rank {} came twice, from {earlier} and from {}", hello.rank, hello.host);
                let _ = say(&mut stream, &Answer::Refused(twice.clone()));
                return Err(Error::new(
                    format!("{twice}: two jobs meet at {self}"),
                    format!("end the other one, or give this one a point of its own with {POINT}=HOST:PORT"),
                ));
            }
            came[hello.rank] = Some((hello.host, Some(stream)));
        }
        let all = came.into_iter().flatten();
        let (hosts, streams): (Vec<_>, Vec<_>) = all.unzip();
        Ok((hosts, streams.into_iter().flatten().collect()))
    }

    /// The next one of this job, if one is there.
    fn next(&self, listener: &TcpListener, world: &World) -> Option<(TcpStream, Hello)> {
        let Ok((mut stream, _)) = listener.accept() else {
            std::thread::sleep(PAUSE);
            return None;
        };
        let hello: Hello = hear(&stream, HELLO)?;
        let why = if hello.calm != VERSION {
            "it has another version of this program"
        } else if hello.token != self.token {
            "it belongs to another job"
        } else if hello.size != world.size || hello.rank >= world.size || hello.rank == 0 {
            "it counts its processes otherwise"
        } else {
            return Some((stream, hello));
        };
        // Whoever does not hear it waits in vain.
        let _ = say(&mut stream, &Answer::Refused(why.to_owned()));
        None
    }

    /// Whoever is not rank 0: asks it.
    fn ask(
        &self,
        world: &World,
        host: &str,
        end: Instant,
        limit: Duration,
    ) -> Result<(Vec<u8>, Vec<String>)> {
        let hello = Hello {
            calm: VERSION,
            token: self.token.clone(),
            rank: world.rank,
            size: world.size,
            host: host.to_owned(),
        };
        let (mut last, mut pause) = (String::new(), PAUSE);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(
                    format!("rank 0 does not answer at {self} within {} s{last}", limit.as_secs_f64()),
                    format!(
                        "see what rank 0 says, and whether this machine can reach {self}; {LIMIT}=SECONDS waits longer"
                    ),
                ));
            }
            let tried = self.connect(left).and_then(|mut stream| {
                say(&mut stream, &hello)?;
                hear::<Answer>(&stream, left).ok_or_else(|| ErrorKind::ConnectionAborted.into())
            });
            match tried {
                Ok(Answer::Met { handed, hosts }) => return Ok((handed, hosts)),
                Ok(Answer::Refused(why)) => {
                    return Err(Error::new(
                        format!("rank 0 at {self} sends rank {} away: {why}", world.rank),
                        format!(
                            "give each job a meeting point of its own ({POINT}=HOST:PORT), and all its processes the same program"
                        ),
                    ));
                }
                // It may not have begun to listen.
                Err(e) => last = format!(" ({e})"),
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 3 / 2).min(SLOWLY);
        }
    }

    fn connect(&self, limit: Duration) -> std::io::Result<TcpStream> {
        let addresses = (self.host.as_str(), self.port).to_socket_addrs()?;
        let mut last = std::io::Error::from(ErrorKind::NotFound);
        for address in addresses {
            match TcpStream::connect_timeout(&address, limit.min(HELLO)) {
                Ok(stream) => return Ok(stream),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    /// Listens for others: of this machine alone if the point says so.
    fn listen(&self) -> Result<TcpListener> {
        let alone = self.host == "localhost" || self.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        let address = if alone {
            (self.host.as_str(), self.port).to_socket_addrs().ok().and_then(|mut all| all.next())
        } else {
            None
        };
        let bound = match address {
            Some(address) => TcpListener::bind(address),
            // Where there is IPv6 this takes both kinds.
            None => TcpListener::bind((Ipv6Addr::UNSPECIFIED, self.port))
                .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, self.port))),
        };
        let listener = bound.and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        listener.map_err(|e| {
            Error::new(
                format!("rank 0 cannot wait for the others at {self}: {e}"),
                format!(
                    "end what holds the port (an earlier job?), or choose another one with {POINT}=HOST:PORT"
                ),
            )
        })
    }

    fn broken(&self, e: &std::io::Error) -> Error {
        Error::new(
            format!("the meeting at {self} broke off: {e}"),
            "see what the other processes say, and start again",
        )
    }
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

fn say<T: Serialize>(stream: &mut TcpStream, value: &T) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.set_write_timeout(Some(HELLO))?;
    stream.write_all(&line)
}

/// A line of the other side; none if there is none in time, or it says something else.
fn hear<T: for<'a> Deserialize<'a>>(stream: &TcpStream, limit: Duration) -> Option<T> {
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE)).read_line(&mut line).ok()?;
    serde_json::from_str(&line).ok()
}

/// The first of nodes as SLURM lists them: `node-[03-05,9],other` begins with `node-03`.
fn first_node(list: &str) -> Option<String> {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (name, rest) = list.split_at(end);
    let Some(numbers) = rest.strip_prefix('[') else {
        return Some(name.to_owned()).filter(|name| !name.is_empty());
    };
    let (numbers, after) = numbers.split_once(']')?;
    let first = numbers.split([',', '-']).next()?;
    Some(format!("{name}{first}{}", after.split(',').next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(300);

    fn world(rank: usize, size: usize) -> World {
        World { rank, size, local_rank: rank, launcher: Launcher::Torchrun }
    }

    /// A point at a port that is free.
    fn point(token: &str) -> Point {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Point { host: "127.0.0.1".into(), port, token: token.into() }
    }

    fn find(variables: &[(&str, &str)], launcher: Launcher) -> Result<Point> {
        let world = World { launcher, ..world(1, 2) };
        Point::find(&world, |name| variables.iter().find(|v| v.0 == name).map(|v| v.1.to_owned()))
    }

    #[test]
    fn all_get_what_rank_0_hands_out_and_the_names_of_all() {
        let at = point("a");
        let all: Vec<_> = std::thread::scope(|scope| {
            // Rank 0 comes last.
            let join = |rank: usize| {
                let at = &at;
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(60 - 20 * rank as u64));
                    at.meet(
                        &world(rank, 3),
                        &format!("host-{rank}"),
                        &[rank as u8; 3],
                        Duration::from_secs(20),
                    )
                })
            };
            let threads: Vec<_> = (0..3).map(join).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for one in all {
            let (handed, hosts) = one.unwrap();
            assert_eq!(handed, [0; 3]);
            assert_eq!(hosts, ["host-0", "host-1", "host-2"]);
        }
        // Nothing listens any more.
        assert!(TcpStream::connect((at.host.as_str(), at.port)).is_err());
    }

    #[test]
    fn who_does_not_come_is_named_on_both_sides() {
        let at = point("a");
        let e = at.meet(&world(0, 3), "h", &[], SOON).unwrap_err();
        assert!(e.what.starts_with("rank 1, rank 2 of 3 did not come") && e.remedy.contains(LIMIT), "{e:?}");
        let e = at.meet(&world(1, 3), "h", &[], SOON).unwrap_err();
        assert!(e.what.contains("rank 0 does not answer") && e.what.contains("refused"), "{e:?}");
    }

    #[test]
    fn a_process_of_another_job_is_sent_away_and_disturbs_nobody() {
        let at = point("a");
        let stranger = Point { token: "b".into(), ..at.clone() };
        std::thread::scope(|scope| {
            let first = scope.spawn(|| at.meet(&world(0, 2), "h", &[7], Duration::from_secs(20)));
            let e = stranger.meet(&world(1, 2), "s", &[], Duration::from_secs(20)).unwrap_err();
            assert!(e.what.contains("another job") && e.remedy.contains(POINT), "{e:?}");
            let e = at.meet(&world(2, 4), "s", &[], Duration::from_secs(20)).unwrap_err();
            assert!(e.what.contains("counts its processes otherwise"), "{e:?}");
            // Somebody who speaks something else, and somebody who says nothing.
            let mut other = TcpStream::connect((at.host.as_str(), at.port)).unwrap();
            other.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            let _silent = TcpStream::connect((at.host.as_str(), at.port)).unwrap();
            assert_eq!(at.meet(&world(1, 2), "h", &[], Duration::from_secs(20)).unwrap().0, [7]);
            assert!(first.join().unwrap().is_ok());
        });
    }

    #[test]
    fn a_rank_that_comes_twice_and_a_port_that_is_held_are_errors() {
        let at = point("a");
        std::thread::scope(|scope| {
            let first = scope.spawn(|| at.meet(&world(0, 3), "h", &[], Duration::from_secs(20)));
            let one = scope.spawn(|| at.meet(&world(1, 3), "x", &[], SOON));
            std::thread::sleep(Duration::from_millis(100));
            assert!(at.meet(&world(1, 3), "y", &[], SOON).is_err());
            let e = first.join().unwrap().unwrap_err();
            assert!(e.what.contains("rank 1 came twice, from x and from y"), "{e:?}");
            assert!(one.join().unwrap().is_err());
        });
        let _held = TcpListener::bind(("127.0.0.1", at.port)).unwrap();
        let e = at.meet(&world(0, 2), "h", &[], SOON).unwrap_err();
        assert!(e.what.contains("cannot wait for the others") && e.remedy.contains(POINT), "{e:?}");
    }

    #[test]
    fn a_roll_call_says_who_is_there() {
        let at = point("a");
        std::thread::scope(|scope| {
            let two = scope.spawn(|| at.roll_call(&world(2, 3), "h", Duration::from_secs(10)));
            assert_eq!(at.roll_call(&world(0, 3), "h", Duration::from_secs(1)), [true, false, true]);
            assert_eq!(two.join().unwrap(), [true, false, true]);
        });
        assert_eq!(at.roll_call(&world(1, 2), "h", SOON), [false, true]);
    }

    #[test]
    fn the_point_is_found_in_the_surroundings() {
        let torch = [("MASTER_ADDR", "node-1"), ("MASTER_PORT", "29500")];
        let here = find(&torch, Launcher::Torchrun).unwrap();
        assert_eq!(here.to_string(), "node-1:29500");
        let held = [
            torch.as_slice(),
            &[("TORCHELASTIC_USE_AGENT_STORE", "True"), ("TORCHELASTIC_RESTART_COUNT", "1")],
        ];
        let next = find(&held.concat(), Launcher::Torchrun).unwrap();
        assert_eq!(next.to_string(), "node-1:29501");
        assert_ne!(next.token, here.token, "a restart is another job");
        let slurm =
            [("SLURM_STEP_NODELIST", "gpu[07-09,12]"), ("SLURM_JOB_ID", "12"), ("SLURM_STEP_ID", "3")];
        assert_eq!(find(&slurm, Launcher::Slurm).unwrap().to_string(), "gpu07:20087");
        let ours = [slurm.as_slice(), &[(POINT, "[::1]:7"), (TOKEN, "t")]].concat();
        let ours = find(&ours, Launcher::Slurm).unwrap();
        assert_eq!((ours.host.as_str(), ours.port, ours.token.as_str()), ("::1", 7, "t"));
        for (variables, part) in [
            ([].as_slice(), "nothing says where they meet"),
            (&[("MASTER_ADDR", "a"), ("MASTER_PORT", "0")], "MASTER_PORT=0 names no port"),
            (&[(POINT, "29500")], "CALM_MEETING=29500 is no HOST:PORT"),
        ] {
            let e = find(variables, Launcher::Torchrun).unwrap_err();
            assert!(e.what.contains(part) && e.remedy.contains(POINT), "{e:?}");
        }
    }

    #[test]
    fn the_first_node_of_a_list_is_found() {
        for (list, first) in [
            ("n1", "n1"),
            ("n1,n2", "n1"),
            ("n[3,5]", "n3"),
            ("a-[003-010]-x,b", "a-003-x"),
            ("n[2-4,7],m", "n2"),
        ] {
            assert_eq!(first_node(list).as_deref(), Some(first));
        }
        assert_eq!(first_node(""), None);
    }
}
