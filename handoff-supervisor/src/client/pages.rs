//! `completions` and `man`.

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::wire::Trouble;
use crate::cli::Cli;
use crate::exit;

/// What the man page says that the command line does not know of itself.
const REST: &str = r#".SH "EXIT STATUS"
.TP
\fB0\fR
Done; of a handoff: committed.
.TP
\fB75\fR
Rolled back, refused or busy. The old daemon serves, and it is safe to try again.
.TP
\fB70\fR
The outcome is unknown, or nobody serves: look at \fBhandoff status\fR.
.TP
\fB69\fR
No supervisor answers.
.TP
\fB64\fR, \fB65\fR, \fB66\fR, \fB74\fR, \fB76\fR, \fB77\fR, \fB78\fR
The command line is wrong; what was given is not what it should be; a file is not there; the system refused to
read or write; what the other side said is not understood; this user may not; the configuration is wrong.
.TP
\fB130\fR, \fB143\fR
Ended by SIGINT or SIGTERM. A handoff that was waited for goes on.
.SH ENVIRONMENT
.TP
\fBHANDOFF_CONFIG\fR, \fBHANDOFF_SOCKET\fR
What \fB\-\-config\fR and \fB\-\-socket\fR are, unless they are given.
.TP
\fBNO_COLOR\fR
If it is set, nothing has a colour.
.SH FILES
.TP
\fI/etc/handoff.toml\fR
The configuration, unless another one is named.
"#;

/// The script that completes commands in a shell.
pub(super) fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "handoff", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The man page, with a section for each verb.
pub(super) fn man() -> Result<String, Trouble> {
    page().map_err(|error| Trouble::new(exit::IO, format!("cannot write the page: {error}")))
}

fn page() -> std::io::Result<String> {
    let mut command = command();
    command.build();
    let verbs: Vec<Command> =
        command.get_subcommands().filter(|verb| verb.get_name() != "help").cloned().collect();
    let mut page = Vec::new();
    let main = Man::new(command).manual("Handoff");
    main.render_title(&mut page)?;
    main.render_name_section(&mut page)?;
    main.render_synopsis_section(&mut page)?;
    main.render_description_section(&mut page)?;
    main.render_options_section(&mut page)?;
    for verb in verbs {
        let name = verb.get_name().to_uppercase();
        let mut sections = Vec::new();
        let has_options = verb.get_arguments().any(|arg| !arg.is_hide_set());
        // A page of its own would be in capitals; here its parts are below the verb.
        let verb = Man::new(verb);
        verb.render_description_section(&mut sections)?;
        verb.render_synopsis_section(&mut sections)?;
        if has_options {
            verb.render_options_section(&mut sections)?;
        }
        let sections = String::from_utf8_lossy(&sections);
        let below = sections.lines().filter(|line| *line != ".SH DESCRIPTION");
        page.extend(format!(".SH \"HANDOFF {name}\"\n").bytes());
        for line in below {
            page.extend(line.replacen(".SH ", ".SS ", 1).bytes().chain([b'\n']));
        }
    }
    page.extend(REST.bytes());
    main.render_version_section(&mut page)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

/// The command line without the verbs that are not for people.
fn command() -> Command {
    let whole = Cli::command();
    let mut command = Command::new("handoff").version(env!("CARGO_PKG_VERSION"));
    if let Some(about) = whole.get_about() {
        command = command.about(about.clone());
    }
    command.subcommands(whole.get_subcommands().filter(|verb| !verb.is_hide_set()).cloned())
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    fn verbs() -> Vec<String> {
        command().get_subcommands().map(|verb| verb.get_name().to_owned()).collect()
    }

    #[test]
    fn the_page_has_every_verb_and_no_hidden_one() {
        let page = page().unwrap();
        assert!(verbs().len() >= 13, "{:?}", verbs());
        for verb in verbs() {
            assert!(page.contains(&format!(".SH \"HANDOFF {}\"", verb.to_uppercase())), "{page}");
        }
        assert!(page.contains("\\-\\-drain\\-grace"), "{page}");
        assert!(page.contains(".SH \"EXIT STATUS\""), "{page}");
        assert!(!page.contains("RUN-AS") && !page.contains("run\\-as"), "{page}");
    }

    #[test]
    fn every_shell_has_its_completions() {
        for shell in Shell::value_variants() {
            let script = completions(*shell);
            assert!(verbs().iter().all(|verb| script.contains(verb.as_str())), "{shell}");
            assert!(!script.contains("run-as"), "{shell}");
        }
    }
}
